/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DIFFERENTIAL_TRACKER_H
#define DIFFERENTIAL_TRACKER_H 1

/* The three trackers, each behind the same policy: who may open a session is the talk's
 * shape, TCP opens with a SYN alone, all else passes by its session or not at all.
 * What cannot be set up ends the program with a message. */

#include <stdbool.h>
#include <stdint.h>

#include "moat/flow.h"
#include "moat/session.h"

#include "talk.h"

/* One packet and what became of it. */
struct seen {
    enum moat_reason reason;        /* of Moat; MOAT_R_NONE: passes */
    bool unbelieved;                /* TCP: it passes without effect */
    bool live;                      /* TCP: there was a session that was not over */
    struct moat_ses_side before[2]; /* TCP: of the client and the server, before the packet */
    bool ovs[2], kernel[2];         /* accepted; by enum mode */
};

enum mode {
    CHAIN = 0,        /* the others see what Moat lets pass */
    SIDE_BY_SIDE = 1, /* all see all packets */
};

/* Moat's filter core: parser, guard, session table, rules and state in one.  A talk's sessions
 * are gone after so many further talks that they are not met again. */
void moat_judge(const struct talk *, struct seen *);

/* Open vSwitch's userspace connection tracker, in-process, one zone. */
bool ovs_accepts(const struct talk *, unsigned i);
void ovs_forget(void); /* all connections */

/* The kernel's, in a network namespace of this process' own: packets go into one tun device
 * and come out of another one, or not. */
struct kernel_packet {
    uint8_t *frame;
    uint32_t size;
    bool from_vm, accepted;
};

void kernel_start(void); /* before any thread is started */
void kernel_judge(struct kernel_packet *, unsigned n);
void kernel_forget(void);

#endif /* tests/differential/tracker.h */
