/* SPDX-License-Identifier: Apache-2.0 */

/* Open vSwitch's conntrack_execute(): what a ct() action of its datapath calls, and what
 * `ovstest test-conntrack` calls.  The flow tables around it would be
 *
 *   ct_state=-trk                        actions=ct(table=1)
 *   ct_state=+trk+inv                    drop
 *   ct_state=+trk+est or +trk+rel        accept
 *   ct_state=+trk+new, who may open, not TCP or tcp_flags=+syn-ack-fin-rst
 *                                        ct(commit), accept */

#include <config.h>

#include "tracker.h"

#include <stdlib.h>
#include <string.h>

#include "conntrack.h"
#include "dp-packet.h"
#include "fatal-signal.h"
#include "ovs-rcu.h"
#include "timeval.h"

static struct conntrack *ct;

static void start(void)
{
    fatal_signal_init();
    ct = conntrack_init();
    conntrack_set_maxconns(ct, 1u << 20);
}

void ovs_forget(void)
{
    if (ct)
        conntrack_flush(ct, NULL);
    ovsrcu_quiesce();
}

static void execute(struct dp_packet *p, const struct talk *t, bool commit)
{
    struct dp_packet_batch batch;

    dp_packet_batch_init_packet(&batch, p);
    conntrack_execute(ct, &batch, htons(t->family == 4 ? 0x0800 : 0x86dd), false, commit, 0, NULL,
                      NULL, 0, 0, NULL, NULL, time_msec(), 0);
}

bool ovs_accepts(const struct talk *t, unsigned i)
{
    const struct packet *q = &t->p[i];
    uint8_t *frame = t->bytes + q->at;
    struct dp_packet p;

    if (!ct)
        start();
    dp_packet_use_const(&p, frame, q->size);
    dp_packet_reset_offsets(&p);
    dp_packet_set_l3(&p, frame + 14);
    dp_packet_set_l4(&p, frame + 14 + (t->family == 4 ? 20 : 40));
    pkt_metadata_init(&p.md, 1);
    pkt_metadata_init_conn(&p.md);
    execute(&p, t, false);
    if (p.md.ct_state & CS_INVALID)
        return false;
    if (p.md.ct_state & (CS_ESTABLISHED | CS_RELATED))
        return true;
    if (!(p.md.ct_state & CS_NEW) || !may_open(t, q->from) ||
        (q->kind == K_TCP && (q->flags & 0x17) != 2))
        return false;
    execute(&p, t, true);
    return !(p.md.ct_state & CS_INVALID);
}
