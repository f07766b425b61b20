/* SPDX-License-Identifier: Apache-2.0 */

/* UDP, ICMP queries and other protocols have no handshake: what counts is who has spoken,
 * and whether more than once (the timers of NSX and pf). */

#include "state_other.h"

enum { SILENT = 0, SPOKE = 1, SPEAKS = 2 };

static uint8_t load(const uint8_t *state)
{
    return __atomic_load_n(state, __ATOMIC_RELAXED);
}

void moat_other_open(struct moat_ses_side side[2], unsigned dir)
{
    __atomic_store_n(&side[dir].state, SPOKE, __ATOMIC_RELAXED);
    __atomic_store_n(&side[!dir].state, SILENT, __ATOMIC_RELAXED);
}

void moat_other_track(struct moat_ses_side side[2], unsigned dir)
{
    uint8_t state = load(&side[dir].state);

    if (state < SPEAKS)
        __atomic_store_n(&side[dir].state, state + 1, __ATOMIC_RELAXED);
}

enum moat_timer moat_other_timer(const struct moat_ses_side side[2], uint8_t family, uint8_t proto)
{
    uint8_t a = load(&side[0].state), b = load(&side[1].state);
    bool both = a && b, more = a == SPEAKS && b == SPEAKS;

    (void)family;
    if (proto == 1 || proto == 58)
        return MOAT_T_ICMP;
    if (proto == 17)
        return more ? MOAT_T_UDP_MULTIPLE : both ? MOAT_T_UDP_SINGLE : MOAT_T_UDP_FIRST;
    return more ? MOAT_T_OTHER_MULTIPLE : both ? MOAT_T_OTHER_SINGLE : MOAT_T_OTHER_FIRST;
}

bool moat_other_valid(const struct moat_ses_side side[2])
{
    return side[0].state <= SPEAKS && side[1].state <= SPEAKS && (side[0].state || side[1].state);
}
