/* SPDX-License-Identifier: Apache-2.0 */

/* The enqueue hook under the switch's retry loop, with a ring that takes what it likes,
 * against a twin that goes packet by packet. */

#include "datapath/hook_prefix.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define BATCH_MAX 80
#define RETRIES 8 /* as in netdev_dpdk_vhost_send() */

/* For inner loops: check's own macros write to a file each time. */
#define must(X)                                                                                    \
    do {                                                                                           \
        if (!(X))                                                                                  \
            ck_abort_msg("%s", #X);                                                                \
    } while (0)

/* A packet that keeps its own history. */
struct rte_mbuf {
    bool marked;
    bool admitted;
    unsigned judged, sent;
    unsigned order; /* of its being sent */
};

static struct ring {
    unsigned room;
    unsigned n_sent;
    unsigned empty_calls;
} ring;

static uint64_t seed = 1;

static unsigned below(unsigned n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(seed >> 33) % n;
}

static uint32_t judge(void *ctx, struct rte_mbuf **pkts, unsigned n)
{
    uint32_t pass = 0;

    must(ctx == &ring);
    must(n <= HOOK_BURST);
    for (unsigned i = 0; i < n; i++) {
        pkts[i]->judged++;
        pass |= (uint32_t)pkts[i]->admitted << i;
    }
    return pass;
}

static unsigned send_some(void *ctx, struct rte_mbuf **pkts, unsigned n)
{
    unsigned k = n < ring.room ? n : ring.room;

    must(ctx == &ring);
    ring.empty_calls += !n;
    ring.room -= k;
    for (unsigned i = 0; i < k; i++) {
        pkts[i]->sent++;
        pkts[i]->order = ++ring.n_sent;
    }
    return k;
}

static void mark(void *ctx, struct rte_mbuf *m)
{
    must(ctx == &ring);
    m->marked = true;
}

static bool unmark(void *ctx, struct rte_mbuf *m)
{
    bool was = m->marked;

    must(ctx == &ring);
    m->marked = false;
    return was;
}

static const struct hook_io io = {judge, send_some, mark, unmark};

/* As the switch sees it: packets done with, one by one. */
static unsigned twin(struct rte_mbuf **pkts, unsigned n, unsigned room)
{
    unsigned i;

    for (i = 0; i < n; i++) {
        if (pkts[i]->admitted && !room)
            break;
        room -= pkts[i]->admitted;
    }
    return i;
}

static void fresh(struct rte_mbuf *pool, struct rte_mbuf **array, unsigned n, unsigned admit_of_8)
{
    for (unsigned i = 0; i < n; i++) {
        array[i] = &pool[i];
        memset(array[i], 0, sizeof **array);
        array[i]->admitted = below(8) < admit_of_8;
    }
}

START_TEST(prefix_is_that_of_the_twin)
{
    for (unsigned n = 0; n <= 12; n++)
        for (uint32_t pass = 0; pass < 1u << n; pass++)
            for (unsigned sent = 0; sent <= (unsigned)__builtin_popcount(pass); sent++) {
                unsigned i = 0, left = sent;

                while (i < n && (!(pass >> i & 1) || left))
                    left -= pass >> i++ & 1;
                must(hook_prefix(pass, n, sent) == i);
            }
    ck_assert_uint_eq(hook_prefix(UINT32_MAX, 32, 31), 31);
    ck_assert_uint_eq(hook_prefix(UINT32_MAX, 32, 32), 32);
    ck_assert_uint_eq(hook_prefix(0, 32, 0), 32);
    ck_assert_uint_eq(hook_prefix(0x80000000u, 32, 0), 31);
    ck_assert_uint_eq(hook_prefix(UINT32_MAX, 3, 3), 3); /* bits beyond n are nobody's */
}
END_TEST

/* The switch's loop over one batch.  Returns how many packets it thinks were sent. */
static unsigned switch_sends(struct hook_note *note, struct rte_mbuf **array, unsigned n, int vid,
                             uint16_t queue, const unsigned rooms[RETRIES + 1])
{
    unsigned cnt = n, retries = 0, done, expected;
    struct rte_mbuf **pkts = array;

    do {
        ring.room = rooms[retries];
        expected = twin(pkts, cnt, ring.room);
        done = hook_enqueue_burst(note, &io, &ring, vid, queue, pkts, (uint16_t)cnt);
        must(done == expected);
        if (!done)
            break;
        cnt -= done;
        pkts += done;
    } while (cnt && retries++ < RETRIES);
    return n - cnt;
}

static void check_history(struct rte_mbuf **array, unsigned n, unsigned done)
{
    unsigned last = 0;

    for (unsigned i = 0; i < n; i++) {
        const struct rte_mbuf *m = array[i];

        must(m->judged <= 1);
        must(m->sent == (i < done && m->admitted));
        if (i < done)
            must(m->judged == 1);
        if (m->sent) {
            must(m->order > last);
            last = m->order;
        }
    }
    must(!ring.empty_calls);
}

/* Batches at the same address, one after the other, often given up half-way. */
START_TEST(retries_judge_once_and_send_in_order)
{
    static struct rte_mbuf pool[BATCH_MAX];
    struct rte_mbuf *array[BATCH_MAX];
    struct hook_note note = {0};

    for (unsigned round = 0; round < 300000; round++) {
        unsigned n = below(4) ? 1 + below(32) : 1 + below(BATCH_MAX), rooms[RETRIES + 1], done;

        fresh(pool, array, n, below(9));
        for (unsigned i = 0; i <= RETRIES; i++)
            rooms[i] = below(3) ? below(12) : below(3) ? 0 : 100;
        ring = (struct ring){0};
        done = switch_sends(&note, array, n, (int)below(2), (uint16_t)below(2), rooms);
        check_history(array, n, done);
    }
}
END_TEST

/* Every pattern of verdicts and of room in two calls. */
START_TEST(small_batches_exhaustively)
{
    struct rte_mbuf pool[6], *array[6];
    struct hook_note note = {0};

    for (unsigned n = 1; n <= 6; n++)
        for (unsigned pass = 0; pass < 1u << n; pass++)
            for (unsigned room = 0; room < (n + 1) * (n + 1); room++) {
                const unsigned rooms[RETRIES + 1] = {room % (n + 1), room / (n + 1)};

                fresh(pool, array, n, 0);
                for (unsigned i = 0; i < n; i++)
                    array[i]->admitted = pass >> i & 1;
                ring = (struct ring){0};
                check_history(array, n, switch_sends(&note, array, n, 1, 0, rooms));
            }
}
END_TEST

/* A batch that the switch gave up leaves a note.  What comes next lies at the same
 * address and is as long; it must be judged all the same. */
static void leave_note(struct hook_note *note, struct rte_mbuf *pool, struct rte_mbuf **array)
{
    fresh(pool, array, 8, 8);
    ring = (struct ring){0};
    ck_assert_uint_eq(hook_enqueue_burst(note, &io, &ring, 3, 1, array, 8), 0);
    ck_assert_uint_eq(note->left, 8);
    for (unsigned i = 0; i < 8; i++)
        ck_assert(array[i]->marked);
}

static void expect_judged(struct hook_note *note, struct rte_mbuf **array, int vid, uint16_t queue,
                          unsigned n, unsigned times)
{
    ring.room = 100;
    for (unsigned i = 0; i < n; i++)
        array[i]->judged = 0;
    ck_assert_uint_eq(hook_enqueue_burst(note, &io, &ring, vid, queue, array, (uint16_t)n), n);
    for (unsigned i = 0; i < n; i++)
        ck_assert_uint_eq(array[i]->judged, times);
    ck_assert_uint_eq(note->left, 0);
}

START_TEST(stale_notes_are_not_believed)
{
    struct rte_mbuf pool[9], *array[9];
    struct hook_note note = {0};

    leave_note(&note, pool, array); /* the switch does retry: believed */
    expect_judged(&note, array, 3, 1, 8, 0);

    leave_note(&note, pool, array); /* other packets */
    fresh(pool, array, 8, 0);
    expect_judged(&note, array, 3, 1, 8, 1);

    for (unsigned odd = 0; odd < 8; odd++) { /* one other packet */
        leave_note(&note, pool, array);
        memset(array[odd], 0, sizeof **array);
        expect_judged(&note, array, 3, 1, 8, 1);
    }

    leave_note(&note, pool, array); /* another ring */
    expect_judged(&note, array, 4, 1, 8, 1);
    leave_note(&note, pool, array);
    expect_judged(&note, array, 3, 0, 8, 1);

    leave_note(&note, pool, array); /* another place, another length */
    expect_judged(&note, array + 1, 3, 1, 7, 1);
    leave_note(&note, pool, array);
    expect_judged(&note, array, 3, 1, 7, 1);

    leave_note(&note, pool, array); /* a note is good for one call */
    expect_judged(&note, array, 4, 1, 8, 1);
    expect_judged(&note, array, 3, 1, 8, 1);
}
END_TEST

START_TEST(empty_batch)
{
    struct hook_note note = {0};

    ring = (struct ring){0};
    ck_assert_uint_eq(hook_enqueue_burst(&note, &io, &ring, 0, 0, NULL, 0), 0);
    ck_assert_uint_eq(ring.empty_calls, 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("hook_prefix");
    TCase *t = tcase_create("enqueue");
    SRunner *r;
    int failed;

    tcase_set_timeout(t, 120);
    tcase_add_test(t, prefix_is_that_of_the_twin);
    tcase_add_test(t, retries_judge_once_and_send_in_order);
    tcase_add_test(t, small_batches_exhaustively);
    tcase_add_test(t, stale_notes_are_not_believed);
    tcase_add_test(t, empty_batch);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
