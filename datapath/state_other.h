/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_STATE_OTHER_H
#define MOAT_DP_STATE_OTHER_H 1

/* State of sessions without a handshake: UDP, ICMP queries, other IP protocols.
 * side[d].state says what the end that sends in direction d has sent:
 * 0 nothing, 1 one packet, 2 more than one.  Pure. */

#include <stdbool.h>
#include <stdint.h>

#include "moat/session.h"

#include "state_tcp.h"

void moat_other_open(struct moat_ses_side side[2], unsigned dir);
void moat_other_track(struct moat_ses_side side[2], unsigned dir);

/* True: a further packet changes nothing. */
static inline bool moat_other_straight(const struct moat_ses_side side[2], unsigned dir)
{
    return __atomic_load_n(&side[dir].state, __ATOMIC_RELAXED) > 1;
}

enum moat_timer moat_other_timer(const struct moat_ses_side side[2], uint8_t family, uint8_t proto);
bool moat_other_valid(const struct moat_ses_side side[2]);

#endif /* datapath/state_other.h */
