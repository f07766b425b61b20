/* SPDX-License-Identifier: Apache-2.0 */

/* Waiting frames against a plain list; then many threads at both ends. */

#include "datapath/pending.h"

#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS 200000
#define THREADS 3
#define PER_THREAD 200000
#define MOST (MOAT_PENDING_BYTES / 3 + 1) /* frames of one byte */

/* For inner loops: check's own macros write to a file each time. */
#define must(X)                                                                                    \
    do {                                                                                           \
        if (!(X))                                                                                  \
            ck_abort_msg("%s", #X);                                                                \
    } while (0)

static struct moat_pending q;
static uint64_t seed = 1;

static uint32_t below(uint32_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % n;
}

/* Frame number i: its length says which one it is, every byte too. */
static void fill(uint8_t *frame, uint32_t len, uint32_t i)
{
    for (uint32_t k = 0; k < len; k++)
        frame[k] = (uint8_t)(i * 7 + k);
}

START_TEST(as_a_list_does)
{
    static uint32_t lens[MOST], ids[MOST];
    uint8_t frame[MOAT_PENDING_FRAME_MAX], out[MOAT_PENDING_FRAME_MAX], want[sizeof frame];
    uint32_t n = 0, bytes = 0, refused = 0, wraps = 0;

    for (uint32_t i = 0; i < ROUNDS; i++) {
        uint32_t len = below(4) ? 1 + below(200) : 1 + below(MOAT_PENDING_FRAME_MAX);

        if (below(2)) {
            bool room = bytes + 2 + len <= MOAT_PENDING_BYTES;

            fill(frame, len, i);
            must(moat_pending_push(&q, frame, len) == room);
            refused += !room;
            if (room) {
                lens[n] = len;
                ids[n++] = i;
                bytes += 2 + len;
                wraps += q.head % MOAT_PENDING_BYTES < len;
            }
        } else {
            uint32_t size = below(16) ? sizeof out : below(100);
            uint32_t got = moat_pending_pop(&q, out, size);

            must(got == (n ? lens[0] : 0));
            if (n && got <= size) {
                fill(want, got, ids[0]);
                must(!memcmp(out, want, got));
            }
            if (n) {
                bytes -= 2 + lens[0];
                n--;
                memmove(lens, lens + 1, n * sizeof *lens);
                memmove(ids, ids + 1, n * sizeof *ids);
            }
        }
        must(moat_pending_any(&q) == (n > 0));
        if (!below(5000)) {
            must(moat_pending_clear(&q) == n);
            n = bytes = 0;
        }
    }
    ck_assert_uint_gt(refused, 1000);
    ck_assert_uint_gt(wraps, 1000);
}
END_TEST

START_TEST(what_is_not_taken)
{
    static uint8_t frame[MOAT_PENDING_FRAME_MAX + 1];

    ck_assert(!moat_pending_push(&q, frame, 0));
    ck_assert(!moat_pending_push(&q, frame, MOAT_PENDING_FRAME_MAX + 1));
    ck_assert(!moat_pending_push(&q, frame, UINT32_MAX));
    ck_assert(!moat_pending_any(&q));
    ck_assert(moat_pending_push(&q, frame, MOAT_PENDING_FRAME_MAX));
    ck_assert_uint_eq(moat_pending_clear(&q), 1);
    ck_assert(!moat_pending_any(&q));
    ck_assert_uint_eq(moat_pending_clear(&q), 0);
}
END_TEST

/* A thread that was descheduled with the lock: nobody waits for it, nothing is changed. */
START_TEST(nobody_waits)
{
    uint8_t frame[8] = {1}, out[8];

    ck_assert(moat_pending_push(&q, frame, sizeof frame));
    q.busy = 1;
    ck_assert(!moat_pending_push(&q, frame, sizeof frame));
    ck_assert_uint_eq(moat_pending_pop(&q, out, sizeof out), 0);
    q.busy = 0;
    ck_assert_uint_eq(moat_pending_pop(&q, out, sizeof out), 8);
    ck_assert(!moat_pending_any(&q));
}
END_TEST

/* --- threads: each frame comes out once, whole, and in its sender's order --- */

struct note {
    uint32_t from, serial;
};

static bool over; /* atomic */
static uint32_t pushed, popped, cleared;

static void *push(void *number)
{
    uint8_t frame[300];
    struct note note = {(uint32_t)(uintptr_t)number, 0};

    for (; note.serial < PER_THREAD; note.serial++) {
        uint32_t len = sizeof note + note.serial % (sizeof frame - sizeof note);

        fill(frame, len, note.serial);
        memcpy(frame, &note, sizeof note);
        if (moat_pending_push(&q, frame, len))
            __atomic_fetch_add(&pushed, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

static bool pop_one(uint32_t last[THREADS])
{
    uint8_t out[300], want[300];
    uint32_t len = moat_pending_pop(&q, out, sizeof out);
    struct note note;

    if (!len)
        return false;
    must(len >= sizeof note && len <= sizeof out);
    memcpy(&note, out, sizeof note);
    must(note.from < THREADS && note.serial + 1 > last[note.from]);
    last[note.from] = note.serial + 1;
    fill(want, len, note.serial);
    must(!memcmp(out + sizeof note, want + sizeof note, len - sizeof note));
    __atomic_fetch_add(&popped, 1, __ATOMIC_RELAXED);
    return true;
}

static void *pop(void *arg)
{
    uint32_t last[THREADS] = {0};
    bool stop;

    (void)arg;
    do {
        stop = __atomic_load_n(&over, __ATOMIC_ACQUIRE);
        while (pop_one(last))
            ;
    } while (!stop);
    return NULL;
}

START_TEST(many_threads)
{
    pthread_t pushers[THREADS], poppers[2];
    uint32_t last[THREADS] = {0};

    for (uintptr_t i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&pushers[i], NULL, push, (void *)i), 0);
    for (unsigned i = 0; i < 2; i++)
        ck_assert_int_eq(pthread_create(&poppers[i], NULL, pop, NULL), 0);
    for (unsigned i = 0; i < 50; i++)
        cleared += moat_pending_clear(&q);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(pushers[i], NULL);
    __atomic_store_n(&over, true, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(poppers[i], NULL);
    while (pop_one(last))
        ;
    ck_assert_uint_gt(popped, 0);
    ck_assert_uint_eq(popped + cleared, pushed);
    ck_assert_uint_eq(q.n, 0);
    ck_assert_uint_eq(q.used, 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("pending");
    TCase *t = tcase_create("frames");
    SRunner *r;
    int failed;

    tcase_set_timeout(t, 120);
    tcase_add_test(t, as_a_list_does);
    tcase_add_test(t, what_is_not_taken);
    tcase_add_test(t, nobody_waits);
    tcase_add_test(t, many_threads);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
