/* SPDX-License-Identifier: Apache-2.0 */

/* Moat: one slot for each shape of talk.  Beside the core runs the TCP state machine alone, as
 * the core uses it: it must say the same, and knows what the state was. */

#include "tracker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datapath/engine.h"
#include "datapath/pipe.h"
#include "datapath/slot.h"
#include "datapath/state_tcp.h"
#include "guests.h"

#define TALKS_PER_ENGINE 1000
#define N_SESSIONS 16384 /* a talk opens a few at most */

static struct moat_engine *engine;
static struct moat_port *ports[N_SHAPES];
static unsigned talks;

/* Time stands still: no timer is compared here. */
static uint64_t now_ms(void)
{
    return 1000000;
}

static void die(const char *what)
{
    fprintf(stderr, "differential: %s\n", what);
    exit(1);
}

static void start(void)
{
    static const char *const policy[N_SHAPES] = {
        "policy \"t\" version 1\ntier t { allow from vm \"a\" to any }\ndefault drop\n",
        "policy \"t\" version 1\ntier t { allow from any to vm \"b\" }\ndefault drop\n",
        "policy \"t\" version 1\ntier t {\nallow from any to vm \"c\"\n"
        "allow from vm \"c\" to any\n}\ndefault drop\n",
    };
    static const uint64_t seed[4] = {11, 22, 33, 44};
    struct moat_engine_conf conf = {
        .n_slots = N_SHAPES + 1, .n_sessions = N_SESSIONS, .now_ms = now_ms, .seed = seed};
    struct guests vms = {.n = 0};
    char err[256] = "";

    engine = moat_engine_create(&conf, err, sizeof err);
    if (!engine || guests_add(&vms, "a,/run/t/a.sock,02:00:00:00:00:01,10.0.0.1,2001:db8::1") ||
        guests_add(&vms, "b,/run/t/b.sock,02:00:00:00:00:02,10.0.0.2,2001:db8::2") ||
        guests_add(&vms, "c,/run/t/c.sock,02:00:00:00:00:03,10.0.0.3,2001:db8::3"))
        die(*err ? err : "no engine");
    for (unsigned i = 0; i < N_SHAPES; i++) {
        struct moat_slot_conf *c = &vms.conf[i];
        size_t len;
        uint8_t *blob = guests_ruleset(&vms, i, policy[i], &len);

        c->settings.max_sessions = c->settings.max_half_open = c->settings.max_new = N_SESSIONS;
        ports[i] = moat_port_register(engine, c->path);
        if (!blob || !ports[i] || moat_slot_claim(engine, c, err, sizeof err) ||
            moat_slot_publish(engine, c->vnic, blob, len, err, sizeof err))
            die(*err ? err : "no slot");
        moat_port_connected(ports[i], true);
        moat_port_started(ports[i]);
        free(blob);
    }
}

/* What the state machine alone says. */
struct shadow {
    struct moat_ses_side side[2];
    bool exists;
};

static enum moat_reason shadow(struct shadow *h, const struct talk *t, const struct packet *p,
                               struct seen *seen)
{
    unsigned dir = is_vm(t, p->from) ? MOAT_FROM_VM : MOAT_TO_VM;
    struct moat_tcp_seg s = {.seq = p->seq,
                             .ack = p->ack,
                             .len = p->len,
                             .win = p->win,
                             .flags = p->flags,
                             .wscale = p->flags & MOAT_TCP_SYN ? p->wscale : 0};
    struct moat_ses_side fresh[2];
    enum moat_reason reason;

    seen->live = h->exists && !moat_tcp_reopens(h->side, dir, &s);
    seen->before[CLIENT] = h->side[is_vm(t, CLIENT) ? MOAT_FROM_VM : MOAT_TO_VM];
    seen->before[SERVER] = h->side[is_vm(t, SERVER) ? MOAT_FROM_VM : MOAT_TO_VM];
    if (seen->live) {
        reason = moat_tcp_track(h->side, dir, &s, false);
        seen->unbelieved = reason == MOAT_TCP_UNBELIEVED;
        return seen->unbelieved ? MOAT_R_NONE : reason;
    }
    if (!may_open(t, p->from))
        return MOAT_R_DEFAULT;
    reason = moat_tcp_open(fresh, dir, &s, false);
    if (!reason) {
        memcpy(h->side, fresh, sizeof fresh);
        h->exists = true;
    }
    return reason;
}

static enum moat_reason judge(const struct talk *t, const struct packet *p, enum moat_dir dir)
{
    struct moat_pkt pkt = {.data = t->bytes + p->at, .len = p->size, .total = p->size};
    uint32_t passed = moat_pipe_burst(moat_thread_self(engine), ports[t->shape], dir, &pkt, 1);

    return passed ? MOAT_R_NONE : (enum moat_reason)pkt.reason;
}

void moat_judge(const struct talk *t, struct seen *seen)
{
    struct shadow h = {.exists = false};

    if (talks++ % TALKS_PER_ENGINE == 0) {
        moat_engine_destroy(engine);
        start();
    }
    for (unsigned i = 0; i < t->n; i++) {
        const struct packet *p = &t->p[i];
        enum moat_dir dir = is_vm(t, p->from) ? MOAT_FROM_VM : MOAT_TO_VM;
        enum moat_reason alone;

        memset(&seen[i], 0, sizeof seen[i]);
        seen[i].reason = judge(t, p, dir);
        if (p->kind != K_TCP || seen[i].reason == MOAT_R_TCP_FLAGS)
            continue;
        alone = shadow(&h, t, p, &seen[i]);
        if (alone != seen[i].reason) {
            fprintf(stderr, "talk %u, packet %u: the core says %s, the state machine %s\n",
                    t->number, i, moat_reason_name(seen[i].reason), moat_reason_name(alone));
            exit(1);
        }
    }
}
