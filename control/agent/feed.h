/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_AGENT_FEED_H
#define MOAT_AGENT_FEED_H 1

/* A source's stream of sessions to the destination: everything once, then rounds
 * of what has changed, then, when the VM has stopped, the final delta. */

#include <stdbool.h>
#include <stdint.h>

#include "moat/ctl.h"

struct peer;

enum feed_phase {
    FEED_OFF,
    FEED_PAGES, /* in the middle of a round */
    FEED_REST,  /* until the next round */
    FEED_SENT,  /* FINAL was sent */
};

struct feed {
    char vnic[MOAT_ID_MAX];
    enum feed_phase phase;
    bool transfer;  /* else there is nothing to send */
    bool final;     /* the VM has stopped: one more round, then FINAL */
    bool final_round; /* the round under way is the last */
    uint64_t offer;
    uint32_t cursor;
    bool first_page;
    uint64_t since_s, round_s; /* of the round under way: asked from, began at */
    uint32_t round;
    uint64_t records; /* since feed_count_anew() */
    uint64_t final_records, final_bytes;
    long long next_round;
};

/* POLICY was sent: from here on the destination counts, and so do we.  A feed that is
 * begun again on the same connection adds to that count: what was on its way when the
 * first one ended is counted by both ends. */
void feed_count_anew(struct feed *);

void feed_start(struct feed *, const char *vnic, bool transfer);
void feed_final(struct feed *, uint64_t offer); /* finish what is under way, then FINAL */
void feed_stop(struct feed *);

/* Sends what the connection will take.  False: the fast path failed, give up. */
bool feed_run(struct feed *, struct peer *);
void feed_wait(const struct feed *);

#endif /* feed.h */
