/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DIFFERENTIAL_APPROVED_H
#define DIFFERENTIAL_APPROVED_H 1

/* The differences that are meant.  Each has a name, says when it applies and why it is right,
 * and has a conversation of its own in test_approved.c. */

#include <stdbool.h>

#include "tracker.h"

enum difference {
    LOOSER = 0,   /* Moat passes what both others refuse */
    STRICTER = 1, /* Moat refuses what both others accept */
};

/* What came before a packet, as far as differences depend on it.  "Before" is since the
 * session was opened, unless it says otherwise. */
struct past {
    const struct talk *talk;
    const struct seen *seen;
    unsigned i; /* the packet */
    enum mode mode;
    bool used;                  /* the talk had a session before */
    bool challenged;            /* a SYN passed unbelieved */
    bool half_open;             /* an ACK of an older connection answered the SYN */
    bool simultaneous;          /* the called end has sent a SYN too */
    bool other_syn;             /* before an answer came, SYNs with different numbers */
    bool other_answer;          /* SYN|ACKs with different numbers */
    bool early_left;            /* data of the SYN was not acknowledged with it */
    bool late_answer;           /* a SYN|ACK passed unbelieved */
    bool answered;              /* the called end has sent something that was believed */
    bool lost_ovs, lost_kernel; /* has refused a packet that Moat passed */
    bool forged;                /* in the talk: a forged packet passed Moat */
    bool refused;               /* in the talk: Moat refused a packet */
    bool refused_syn;           /* in the talk: Moat refused a SYN of the called end */
    uint32_t end[2];            /* behind the last octet that this end has sent */
    uint32_t acked[2];          /* highest acknowledgement that this end has sent */
    bool acks[2];
};

struct approved {
    const char *name;
    enum difference difference;
    bool (*applies)(const struct past *, const struct packet *, const struct seen *);
    const char *why;
};

extern const struct approved approved[];
extern const unsigned n_approved;

/* Reads packets 0 to i - 1. */
void look_back(struct past *, const struct talk *, const struct seen *, unsigned i, enum mode);

/* The index of the first that applies, or -1: nobody approved it. */
int find_approved(enum difference, const struct past *);

#endif /* tests/differential/approved.h */
