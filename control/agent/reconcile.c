/* SPDX-License-Identifier: Apache-2.0 */

/* Digests decide, not what was sent last: the engine may have been restarted, its
 * mapping exchanged, or another hand may have been at its socket. */

#include "reconcile.h"

#include <stdio.h>
#include <string.h>

bool reconcile_applies(enum mig_state s)
{
    /* What leaves keeps what it was judged by. */
    return s != MIG_IDLE && s != MIG_FROZEN && s != MIG_GONE && s != MIG_TAKING_BACK;
}

static bool same_conf(const struct moat_slot_conf *a, const struct moat_slot_conf *b)
{
    if (strcmp(a->vm, b->vm) || strcmp(a->network, b->network) || strcmp(a->path, b->path) ||
        memcmp(a->mac, b->mac, 6) || a->n_addrs != b->n_addrs ||
        memcmp(&a->settings, &b->settings, sizeof a->settings))
        return false;
    for (unsigned i = 0; i < a->n_addrs; i++)
        if (a->addrs[i].family != b->addrs[i].family || a->addrs[i].plen != b->addrs[i].plen ||
            memcmp(a->addrs[i].addr, b->addrs[i].addr, 16))
            return false;
    return true;
}

static bool state_fits(enum mig_state m, uint8_t s)
{
    switch (m) {
    case MIG_HOLDING:
        return s == MOAT_SLOT_ACTIVE || s == MOAT_SLOT_ENROLLING;
    case MIG_FEEDING:
        return s == MOAT_SLOT_ACTIVE || s == MOAT_SLOT_ENROLLING || s == MOAT_SLOT_FROZEN ||
               s == MOAT_SLOT_BLOCKED;
    case MIG_GONE:
        return s == MOAT_SLOT_DEPARTED || s == MOAT_SLOT_BLOCKED;
    case MIG_FROZEN:
    case MIG_TAKING_BACK:
        return s == MOAT_SLOT_FROZEN || s == MOAT_SLOT_DEPARTED || s == MOAT_SLOT_BLOCKED;
    case MIG_WAITING:
    case MIG_ASKED:
    case MIG_FILLING:
        return s == MOAT_SLOT_ARRIVING || s == MOAT_SLOT_BLOCKED;
    case MIG_COMMITTED:
        return s == MOAT_SLOT_ARRIVING || s == MOAT_SLOT_ACTIVE;
    default:
        return true;
    }
}

bool reconcile_enrolls_too_long(const struct reconcile_want *w, const struct moat_slot_info *s)
{
    return s->state == MOAT_SLOT_ENROLLING && reconcile_applies(w->state) && w->conf &&
           (w->conf->settings.quarantine || !w->conf->settings.enroll_s);
}

unsigned reconcile_compare(const struct reconcile_want *w, const struct moat_slot_info *s)
{
    unsigned diff = 0;

    if (!s)
        return w->state == MIG_IDLE ? 0 : DIFF_MISSING;
    if (!state_fits(w->state, s->state) || reconcile_enrolls_too_long(w, s))
        diff |= DIFF_STATE;
    if (!reconcile_applies(w->state))
        return diff;
    if (w->conf && !same_conf(w->conf, &s->conf))
        diff |= DIFF_CONF;
    if (w->ruleset && (!s->has_ruleset || s->generation != w->generation ||
                       memcmp(s->digest, w->digest, sizeof w->digest)))
        diff |= DIFF_RULESET;
    return diff;
}

void reconcile_hex(const uint8_t digest[16], char out[33])
{
    for (int i = 0; i < 16; i++)
        snprintf(out + 2 * i, 3, "%02x", digest[i]);
}

void reconcile_text(unsigned diff, const struct reconcile_want *w, const struct moat_slot_info *s,
                    char *buf, size_t size)
{
    char want[33], have[33] = "none";

    buf[0] = '\0';
    if (diff & DIFF_MISSING) {
        snprintf(buf, size, "the fast path has no slot for it");
    } else if (diff & DIFF_RULESET) {
        reconcile_hex(w->digest, want);
        if (s->has_ruleset)
            reconcile_hex(s->digest, have);
        snprintf(buf, size, "ruleset %.8s of generation %llu is intended, %.8s of %llu is enforced",
                 want, (unsigned long long)w->generation, have, (unsigned long long)s->generation);
    } else if (diff & DIFF_CONF) {
        snprintf(buf, size, "identity or settings differ from what is intended");
    } else if ((diff & DIFF_STATE) && reconcile_enrolls_too_long(w, s)) {
        snprintf(buf, size, "the slot is enrolling where it shall enforce");
    } else if (diff & DIFF_STATE) {
        snprintf(buf, size, "the slot is %s while the vNIC is %s", moat_slot_state_name(s->state),
                 mig_state_name(w->state));
    }
}
