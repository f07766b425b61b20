/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_CLASSIFY_H
#define MOAT_DP_CLASSIFY_H 1

/* First-match classification of packets that have no session yet.  Pure but for
 * the hit counters of the ruleset. */

#include <stdint.h>

#include "moat/flow.h"

#include "ruleset.h"

struct moat_match {
    uint8_t verdict;   /* MOAT_ALLOW, MOAT_DROP or MOAT_REJECT */
    uint8_t logged;    /* write an event: the deciding rule or a log rule before it says so */
    uint8_t loose;     /* the deciding rule lets TCP start mid-stream */
    uint8_t pad;
    uint32_t index;    /* of the deciding rule; n_rules: the default */
    uint32_t rule;     /* its id; 0: the default */
    uint32_t log_rule; /* id of the first rule that asked for a log, 0: none */
};

/* Judges n <= 32 flows.  Does not count hits. */
void moat_classify(const struct moat_ruleset *, const struct moat_flow *flows, unsigned n,
                   struct moat_match *out);

#endif /* datapath/classify.h */
