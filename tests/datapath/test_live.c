/* SPDX-License-Identifier: Apache-2.0 */

/* The straight line of TCP against the whole state machine: whenever moat_tcp_straight() takes a
 * segment, moat_tcp_track() must let it pass and leave the same behind; when it does not,
 * nothing may have changed.  Sides at random, with numbers at and around the edges. */

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "datapath/state_tcp.h"
#include "tests/lib/trials.h"

#define N_TRIALS TRIALS(2000000)

static uint64_t state = 88172645463325252u;

static uint32_t draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 20);
}

/* A distance from an edge. */
static uint32_t near(void)
{
    static const uint32_t far[] = {0,        1,           65535,   66000,         66001,
                                   70000,    1 << 20,     1 << 28, (1 << 30) - 1, 1 << 30,
                                   1u << 31, 65535u << 14};
    uint32_t d = far[draw() % (sizeof far / sizeof *far)] + draw() % 3 - 1;

    switch (draw() % 4) {
    case 0:
        return d;
    case 1:
        return -d;
    case 2:
        return draw() % 3000;
    default:
        return draw() % 5 - 2;
    }
}

static struct moat_ses_side side(void)
{
    static const uint16_t wins[] = {0, 1, 100, 0x4000, 65535};
    struct moat_ses_side s = {.max_win = wins[draw() % 5], .state = MOAT_TCPS_ESTABLISHED};

    if (draw() % 3)
        s.wscale = (uint8_t)(0x80 | draw() % 15);
    if (!(draw() % 3))
        s.wscale |= 0x10;
    if (!(draw() % 16))
        s.wscale |= (uint8_t)(draw() % 4 << 5);
    if (!(draw() % 16))
        s.state = (uint8_t)(draw() % MOAT_N_TCP_STATES);
    s.seq_lo = draw();
    s.seq_hi = s.seq_lo + near();
    return s;
}

START_TEST(takes_only_what_the_state_machine_takes)
{
    unsigned taken = 0, moved = 0;

    for (unsigned i = 0; i < N_TRIALS; i++) {
        struct moat_ses_side was[2] = {side(), side()}, straight[2], whole[2];
        unsigned dir = draw() & 1;
        struct moat_tcp_seg s = {.seq = was[dir].seq_lo + near(),
                                 .ack = was[!dir].seq_lo + near(),
                                 .len = draw() % 2 ? draw() % 70000 : 0,
                                 .win = (uint16_t)(was[dir].max_win + draw() % 3 - 1),
                                 .flags = MOAT_TCP_ACK | (draw() % 4 ? 0 : MOAT_TCP_PSH)};

        if (draw() % 4 == 0) /* exactly as far as may be */
            s.seq = was[dir].seq_hi - s.len;
        if (draw() % 4 == 0)
            was[!dir].seq_hi = s.ack + s.win + draw() % 3 - 1;
        memcpy(straight, was, sizeof was);
        memcpy(whole, was, sizeof was);
        if (!moat_tcp_straight(straight, dir, s.seq + s.len, s.ack, s.win)) {
            ck_assert_mem_eq(straight, was, sizeof was);
            continue;
        }
        taken++;
        ck_assert_int_eq(moat_tcp_track(whole, dir, &s, false), MOAT_R_NONE);
        ck_assert_mem_eq(straight, whole, sizeof whole);
        moved += memcmp(whole, was, sizeof was) != 0;
    }
    /* It is worth having. */
    ck_assert_uint_gt(taken, N_TRIALS / 50);
    ck_assert_uint_gt(moved, taken / 4);
    ck_assert_uint_gt(taken - moved, taken / 50);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("live");
    TCase *tc = tcase_create("twin");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, takes_only_what_the_state_machine_takes);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
