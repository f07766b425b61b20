/* SPDX-License-Identifier: Apache-2.0 */

/* Only what policy knows of the session counts: direction, addresses, protocol, ports.  Hits
 * are those of packets: a session that is judged again hits no rule. */

#include "rejudge.h"

#include <string.h>

#include "classify.h"
#include "engine.h"
#include "session_private.h"

void moat_session_flow(const struct moat_session_table *t, const struct moat_session *s,
                       struct moat_flow *f)
{
    const uint8_t *addrs6 = moat_session_addresses(t, s);
    uint16_t lport = s->key.lport, rport = s->key.rport;
    enum moat_dir dir = moat_session_dir(s);

    memset(f, 0, sizeof *f);
    f->dir = (uint8_t)dir;
    f->family = s->key.family;
    f->proto = s->key.proto;
    if (s->key.proto == 1 || s->key.proto == 58) {
        f->dport = rport >> 1; /* type of the request, code 0 */
    } else {
        f->sport = dir == MOAT_FROM_VM ? lport : rport;
        f->dport = dir == MOAT_FROM_VM ? rport : lport;
    }
    if (!addrs6) {
        memcpy(f->local, &s->key.local, 4);
        memcpy(f->remote, &s->key.remote, 4);
    } else {
        memcpy(f->local, addrs6, 16);
        memcpy(f->remote, addrs6 + 16, 16);
    }
}

bool moat_rejudge(struct moat_session_table *t, const struct moat_view *v, uint64_t *counters,
                  struct moat_session *s)
{
    struct moat_match d;
    struct moat_flow flow;

    moat_count(counters, MOAT_C_SESSIONS_REJUDGED, 1);
    moat_session_flow(t, s, &flow);
    moat_classify(v->rules, &flow, 1, &d);
    if (d.verdict != MOAT_ALLOW) {
        uint8_t before = __atomic_fetch_or(&s->flags, MOAT_SES_F_CUT, __ATOMIC_RELAXED);

        moat_session_touch(t, s);
        if (!(before & MOAT_SES_F_CUT))
            moat_count(counters, MOAT_C_SESSIONS_CUT, 1);
        return false;
    }
    moat_session_admitted(t, s, d.rule, moat_ruleset_head(v->rules)->generation, v->serial);
    return true;
}
