/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_TESTS_STREAM_H
#define MOAT_TESTS_STREAM_H 1

/* A random stream of packets between the VMs of a rig, with policy changes, flushes and pauses, and
 * the verdicts that one engine gives when it gets one packet at a time: what every other way of
 * doing it must give, too.
 *
 * The stream is cut into steps.  Within a step no order between packets matters but that of
 * packets of one direction: a packet whose tuple came the other way before, or that another
 * one's ICMP error quotes, begins a new step, and so does every pause or change of policy.
 * Quotas per second are left out: they depend on order by intent. */

#include <stdbool.h>
#include <stdint.h>

#include "tests/lib/rig.h"

#define STREAM_PACKETS 24000
#define STREAM_STEP_MAX 512
#define STREAM_POLICIES 2
#define STREAM_NOT_PUSHED 0xff
#define STREAM_PASSED 0x80 /* else a verdict is the reason */

/* One packet of the stream, and what it meets. */
struct packet {
    uint8_t *data; /* exactly len bytes */
    uint32_t len, total;
    uint8_t hop[2]; /* slot that it comes from, slot that it goes to; RIG_SLOTS: none */
    uint64_t tuple; /* either direction; 0: no session can care */
    uint64_t pair;  /* of addresses, likewise */
    bool up;        /* direction within the tuple */
    bool error;     /* an ICMP error about the tuple */
    bool tcp, fragment;
};

enum change { NOTHING, PUBLISH, FLUSH };

struct step {
    unsigned first, n;
    uint32_t wait_ms;
    enum change change;
    unsigned slot, policy;
};

struct stream {
    struct packet packets[STREAM_PACKETS];
    struct step *steps;
    unsigned n_steps;
};

/* verdicts[i][h]: of packet i where it comes from (0) and where it goes to (1). */
typedef uint8_t stream_verdicts[STREAM_PACKETS][2];

/* A stream of n_convs conversations from a seed. */
void stream_make(struct stream *, uint64_t seed, unsigned n_convs, bool fragments);

/* Before the first of: an engine whose slots have the first policy; a policy for a slot. */
void stream_compile(void);
void stream_start(struct rig *, const char *mapping, uint32_t n_sessions);
void stream_publish(struct rig *, unsigned slot, unsigned policy);

/* Time zero, for another run. */
void stream_reset(void);

/* What happens before a step; and of that the change alone. */
void stream_begin(struct rig *, const struct step *);
void stream_change(struct rig *, const struct step *);

/* Packets which[0..n) meet their slot on one hop, as one burst.  Packet i meets both slots. */
void stream_push(struct rig *, const struct stream *, const unsigned *which, unsigned n,
                 unsigned hop, stream_verdicts out);
void stream_push_one(struct rig *, const struct stream *, unsigned i, stream_verdicts out);

/* The verdicts of one engine, one packet at a time. */
void stream_reference(const struct stream *, uint32_t n_sessions, stream_verdicts out);

/* The same, or the first difference fails the test.  `how`: what gave `got`. */
void stream_compare(const struct stream *, const stream_verdicts want, const stream_verdicts got,
                    const char *how);

/* A stream that only passes, or only fails, compares nothing. */
void stream_check(const struct stream *, const stream_verdicts, const char *name);

const char *stream_verdict(uint8_t);

#endif /* tests/lib/stream.h */
