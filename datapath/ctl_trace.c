/* SPDX-License-Identifier: Apache-2.0 */

/* A client has one trace, which ends with its connection.  What it does not take at once waits:
 * one packet in the client, the others in the trace's ring, where the packet threads lose what
 * finds no room. */

#include <errno.h>
#include <string.h>

#include "ctl_private.h"
#include "trace.h"

#define PACKETS_PER_ROUND MOAT_TRACE_CELLS /* of one client */

int ctl_on_trace(struct moat_ctl_server *c, struct ctl_request *r)
{
    const struct moat_ctl_trace *ask = r->body;
    int rc = ctl_check_text(r, "vNIC id", ask->vnic, sizeof ask->vnic);

    if (rc)
        return rc;
    if (ask->n_insns > MOAT_TRACE_INSNS_MAX ||
        r->len - sizeof *ask != ask->n_insns * sizeof(struct moat_trace_insn))
        return ctl_refuse(r, -EBADMSG,
                          "%zu bytes follow, expected %u instructions of %zu, at most %u",
                          r->len - sizeof *ask, ask->n_insns, sizeof(struct moat_trace_insn),
                          MOAT_TRACE_INSNS_MAX);
    if (r->client->trace)
        return ctl_refuse(r, -EBUSY, "this connection has a trace already");
    r->client->trace = moat_trace_start(c->engine, ask, (const struct moat_trace_insn *)(ask + 1),
                                        r->why, sizeof r->why);
    if (!r->client->trace)
        return -errno;
    c->n_traces++;
    return 0;
}

bool ctl_trace_send(struct ctl_client *cl)
{
    struct {
        struct moat_ctl_head head;
        struct moat_traced traced;
        uint8_t data[MOAT_TRACE_SNAPLEN_MAX];
    } m;

    for (unsigned n = 0; n < PACKETS_PER_ROUND && !cl->answer; n++) {
        if (!moat_trace_take(cl->trace, &m.traced, m.data))
            break;
        m.head = (struct moat_ctl_head){.type = MOAT_CTL_TRACED,
                                        .version = MOAT_CTL_VERSION,
                                        .len = (uint32_t)sizeof m.traced + m.traced.cap_len};
        if (ctl_send(cl, &m.head, -1))
            return false;
    }
    return true;
}

void ctl_trace_end(struct moat_ctl_server *c, struct ctl_client *cl)
{
    if (!cl->trace)
        return;
    moat_trace_stop(c->engine, cl->trace);
    cl->trace = NULL;
    c->n_traces--;
}
