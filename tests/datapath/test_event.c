/* SPDX-License-Identifier: Apache-2.0 */

/* The event ring: order, loss and its gap, wake-up, many producers at once. */

#include "datapath/event.h"

#include <check.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define PRODUCERS 4
#define PER_PRODUCER 20000

/* For inner loops: check's own macros write to a file each time. */
#define must(X)                                                                                    \
    do {                                                                                           \
        if (!(X))                                                                                  \
            ck_abort_msg("%s", #X);                                                                \
    } while (0)

static struct moat_events q;

static bool post(int64_t value, bool urgent)
{
    struct moat_event ev = {.type = MOAT_EV_PACKET, .value = value};

    memset(ev.text, (int)(value & 0x7f), sizeof ev.text);
    return moat_event_post(&q, &ev, urgent);
}

/* Takes one and checks that it is whole. */
static bool take(struct moat_event *ev)
{
    if (!moat_event_take(&q, ev))
        return false;
    must(ev->type == MOAT_EV_PACKET && ev->time_us);
    for (unsigned i = 0; i < sizeof ev->text; i++)
        must(ev->text[i] == (char)(ev->value & 0x7f));
    return true;
}

START_TEST(size_must_be_a_power_of_two)
{
    struct moat_events e;

    ck_assert_int_lt(moat_events_init(&e, 0), 0);
    ck_assert_int_lt(moat_events_init(&e, 6), 0);
    ck_assert_int_lt(moat_events_init(&e, 1), 0);
    ck_assert_int_eq(moat_events_init(&e, 2), 0);
    moat_events_destroy(&e);
}
END_TEST

START_TEST(in_order_round_after_round)
{
    struct moat_event ev;

    ck_assert_int_eq(moat_events_init(&q, 8), 0);
    ck_assert(!take(&ev));
    for (int64_t i = 0; i < 1000; i += 5) {
        for (int64_t k = i; k < i + 5; k++)
            ck_assert(post(k, false));
        for (int64_t k = i; k < i + 5; k++) {
            ck_assert(take(&ev));
            ck_assert_int_eq(ev.value, k);
            ck_assert_uint_eq(ev.seq, (uint64_t)k + 1);
        }
        ck_assert(!take(&ev));
    }
    moat_events_destroy(&q);
}
END_TEST

START_TEST(loss_is_counted_and_leaves_a_gap)
{
    struct moat_event ev;

    ck_assert_int_eq(moat_events_init(&q, 4), 0);
    for (int64_t i = 0; i < 4; i++)
        ck_assert(post(i, false));
    for (int64_t i = 4; i < 7; i++)
        ck_assert(!post(i, false));
    ck_assert_uint_eq(q.ring.lost, 3);
    for (int64_t i = 0; i < 4; i++) {
        ck_assert(take(&ev));
        ck_assert_int_eq(ev.value, i);
    }
    ck_assert(post(7, false));
    ck_assert(take(&ev));
    ck_assert_int_eq(ev.value, 7);
    ck_assert_uint_eq(ev.seq, 8); /* 5 taken, 3 lost */
    moat_events_destroy(&q);
}
END_TEST

START_TEST(only_urgent_ones_wake)
{
    struct pollfd p = {.events = POLLIN};

    ck_assert_int_eq(moat_events_init(&q, 4), 0);
    p.fd = q.wake_fd;
    post(1, false);
    ck_assert_int_eq(poll(&p, 1, 0), 0);
    post(2, true);
    ck_assert_int_eq(poll(&p, 1, 0), 1);
    moat_events_destroy(&q);
}
END_TEST

static void *producer(void *number)
{
    int64_t base = (int64_t)(intptr_t)number << 32;
    uintptr_t lost = 0;

    for (int64_t i = 0; i < PER_PRODUCER; i++)
        lost += !post(base + i, i % 1000 == 0);
    return (void *)lost;
}

static void run_producers(uint32_t size, bool slow)
{
    int64_t last[PRODUCERS];
    uint64_t lost = 0, taken = 0, seq = 0;
    pthread_t threads[PRODUCERS];
    struct moat_event ev;
    bool over = false;
    unsigned joined = 0;

    ck_assert_int_eq(moat_events_init(&q, size), 0);
    for (unsigned i = 0; i < PRODUCERS; i++) {
        last[i] = -1;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, producer, (void *)(intptr_t)i), 0);
    }
    while (!over) {
        void *n;

        over = joined == PRODUCERS;
        while (take(&ev)) {
            unsigned from = (unsigned)(ev.value >> 32);

            must(from < PRODUCERS && (ev.value & UINT32_MAX) > last[from]);
            last[from] = ev.value & UINT32_MAX;
            must(ev.seq > seq);
            seq = ev.seq;
            taken++;
            if (slow && taken % 64 == 0)
                sched_yield();
        }
        if (joined < PRODUCERS && !pthread_tryjoin_np(threads[joined], &n)) {
            lost += (uintptr_t)n;
            joined++;
        }
    }
    ck_assert_uint_eq(q.ring.lost, lost);
    ck_assert_uint_eq(taken + lost, PRODUCERS * PER_PRODUCER);
    ck_assert(post(0, false) && take(&ev));
    ck_assert_uint_eq(ev.seq, taken + lost + 1);
    moat_events_destroy(&q);
}

START_TEST(many_producers)
{
    run_producers(4096, false);
    run_producers(16, true);
    run_producers(2, true);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("event");
    TCase *t = tcase_create("ring");
    SRunner *r;
    int failed;

    tcase_set_timeout(t, 120);
    tcase_add_test(t, size_must_be_a_power_of_two);
    tcase_add_test(t, in_order_round_after_round);
    tcase_add_test(t, loss_is_counted_and_leaves_a_gap);
    tcase_add_test(t, only_urgent_ones_wake);
    tcase_add_test(t, many_producers);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
