/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_TCP_OBSERVER_H
#define TESTS_TCP_OBSERVER_H 1

/* The pipe's use of the TCP state machine, without a table; checks after each segment what
 * must always hold. */

#include <check.h>
#include <string.h>

#include "datapath/state_tcp.h"

struct observer {
    struct moat_ses_side side[2];
    bool exists, loose;
};

static inline enum moat_reason observe(struct observer *o, unsigned dir,
                                       const struct moat_tcp_seg *s, bool lenient)
{
    struct moat_ses_side before[2];
    enum moat_reason reason;

    memcpy(before, o->side, sizeof before);
    if (o->exists && moat_tcp_reopens(o->side, dir, s))
        o->exists = false;
    if (!o->exists) {
        reason = moat_tcp_open(o->side, dir, s, o->loose);
        o->exists = reason == MOAT_R_NONE;
    } else {
        reason = moat_tcp_track(o->side, dir, s, lenient);
    }
    if (reason == MOAT_TCP_UNBELIEVED && o->side[dir].state == MOAT_TCPS_NONE) {
        /* What it acknowledges is kept. */
        ck_assert_uint_eq(o->side[dir].seq_lo, s->ack);
        before[dir].seq_lo = s->ack;
        before[dir].max_win = 1;
    }
    if (reason == MOAT_R_TCP_WINDOW && dir == MOAT_FROM_VM &&
        before[0].state >= MOAT_TCPS_ESTABLISHED && before[0].state < MOAT_TCPS_RESET &&
        o->side[0].state == MOAT_TCPS_RESET)
        before[0].state = before[1].state = MOAT_TCPS_RESET; /* the VM knows nothing of it */
    if (reason)                                              /* nothing changed */
        ck_assert_mem_eq(o->side, before, sizeof before);
    else
        ck_assert(moat_tcp_valid(o->side));
    return reason;
}

#endif /* tests/datapath/tcp_observer.h */
