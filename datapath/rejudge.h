/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_REJUDGE_H
#define MOAT_DP_REJUDGE_H 1

/* A session under a ruleset that did not admit it: judged again, in its original direction. */

#include <stdbool.h>
#include <stdint.h>

#include "moat/flow.h"

#include "session.h"
#include "slot.h"

/* The flow of a session's first packet: what admitted it. */
void moat_session_flow(const struct moat_session_table *, const struct moat_session *,
                       struct moat_flow *);

/* An older ruleset admitted it, or none.  A newer one may have, if another thread sees a newer
 * view than this burst: that one's word counts. */
static inline bool moat_session_is_stale(const struct moat_view *v, const struct moat_session *s)
{
    uint32_t serial = __atomic_load_n(&s->serial, __ATOMIC_RELAXED);

    return !serial || (int32_t)(v->serial - serial) > 0;
}

/* True: this view's rules admit it, and it is theirs now.  False: it is cut.  Within a QSBR
 * section; `counters` are the calling thread's for the slot. */
bool moat_rejudge(struct moat_session_table *, const struct moat_view *, uint64_t *counters,
                  struct moat_session *);

#endif /* datapath/rejudge.h */
