/* SPDX-License-Identifier: Apache-2.0 */

/* Packet -> whose and which way -> Ethernet frame -> clock -> moat_pipe_burst() of one
 * -> moat_explain(). */

#include "replay.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datapath/engine.h"
#include "datapath/pipe.h"
#include "datapath/slot.h"
#include "datapath/trace.h"
#include "policy/policy.h"

#ifndef N_SESSIONS /* the fuzzer makes many small ones */
#define N_SESSIONS 262144
#endif
#define START_MS 1000000 /* of the clock: not 0, which means "never" in places */
#define TURN_MS 50       /* of the engine's housekeeping */
#define TURNS_MAX 80     /* behind one step: enough to look at all sessions */
#define STEP_MAX_US (30ull * 86400 * 1000000)
#define ETH_LEN 14
#define GENERATION 1

struct vnic {
    struct moat_slot_conf conf;
    struct moat_port *port;
    uint32_t slot;
    bool has_mac;
};

struct moat_replay {
    struct moat_engine *engine;
    struct vnic vnics[MOAT_REPLAY_VNICS_MAX];
    size_t n_vnics;
    uint64_t clock_us, turn_ms;
    uint64_t newest_us; /* newest time stamp so far */
    bool started;
    uint8_t *frame; /* room for one with a header of ours */
    size_t allocated;
    struct moat_replayed *now; /* of the packet in the pipe */
};

static uint64_t clock_ms = START_MS;
static bool in_use;

static uint64_t now_ms(void)
{
    return clock_ms;
}

/* --- life ------------------------------------------------------------------------ */

/* An answer goes back to who sent the packet; what goes on with it had waited for it. */
static void take_injected(struct moat_port *port, enum moat_dir dir, const uint8_t *frame,
                          uint32_t len)
{
    struct moat_replay *r = port->host;
    struct moat_pkt p = {.data = frame, .len = len, .total = len};

    if (!r->now)
        return;
    if (dir == (enum moat_dir)r->now->traced.flow.dir) {
        r->now->released += r->now->released < UINT8_MAX;
    } else {
        moat_parse(&p);
        r->now->answer = p.kind == MOAT_PKT_TCP ? MOAT_ANSWER_RST : MOAT_ANSWER_ICMP;
    }
}

static int publish(struct moat_replay *r, const struct moat_replay_conf *conf, const struct vnic *v,
                   unsigned vnic, char *err, size_t err_size)
{
    struct moat_diags *diags = moat_diags_create();
    uint8_t *blob = NULL;
    size_t len;
    int rc =
        moat_policy_compile(conf->policy, conf->inventory, vnic, GENERATION, &blob, &len, diags);

    if (rc) {
        const struct moat_diag *d =
            diags && moat_diags_count(diags) ? moat_diags_get(diags, 0) : NULL;

        snprintf(err, err_size, "the policy cannot be compiled for vNIC %s: %s", v->conf.vnic,
                 d ? d->message : strerror(-rc));
    } else {
        rc = moat_slot_publish(r->engine, v->conf.vnic, blob, len, err, err_size);
    }
    free(blob);
    moat_diags_destroy(diags);
    return rc;
}

static int let_pick_up(struct moat_replay *r, const struct vnic *v, uint32_t seconds, char *err,
                       size_t err_size)
{
    struct moat_ctl_state s = {.state = MOAT_SLOT_ACTIVE, .pickup_s = seconds};

    memcpy(s.vnic, v->conf.vnic, sizeof s.vnic);
    return seconds ? moat_slot_set_state(r->engine, &s, err, err_size) : 0;
}

static int add_vnic(struct moat_replay *r, const struct moat_replay_conf *conf,
                    const struct moat_replay_vnic *from, char *err, size_t err_size)
{
    struct vnic *v = &r->vnics[r->n_vnics];
    struct moat_slot_conf *c = &v->conf;
    int rc;

    if (from->n_addrs > MOAT_ADDRS_MAX) {
        snprintf(err, err_size, "%zu addresses, at most %u", from->n_addrs, MOAT_ADDRS_MAX);
        return -E2BIG;
    }
    snprintf(c->vnic, sizeof c->vnic, "%s", from->id);
    snprintf(c->vm, sizeof c->vm, "%s", from->vm);
    snprintf(c->network, sizeof c->network, "%s", from->network);
    snprintf(c->path, sizeof c->path, "%zu", r->n_vnics);
    v->has_mac = from->has_mac;
    if (from->has_mac)
        memcpy(c->mac, from->mac, sizeof c->mac);
    else
        memcpy(c->mac, "\2\0\0\0\0\1", sizeof c->mac);
    c->n_addrs = (uint8_t)from->n_addrs;
    if (from->n_addrs)
        memcpy(c->addrs, from->addrs, from->n_addrs * sizeof *c->addrs);
    c->state = MOAT_SLOT_ACTIVE;
    c->epoch = 1;
    rc = moat_policy_settings(conf->policy, conf->inventory,
                              moat_inventory_vm_of(conf->inventory, from->vnic), &c->settings);
    if (rc) {
        snprintf(err, err_size, "the policy has no settings for vNIC %s: %s", c->vnic,
                 strerror(-rc));
        return rc;
    }
    v->port = moat_port_register(r->engine, c->path);
    if (!v->port) {
        snprintf(err, err_size, "out of memory");
        return -ENOMEM;
    }
    v->port->host = r;
    moat_port_connected(v->port, true);
    moat_port_started(v->port);
    rc = moat_slot_claim(r->engine, c, err, err_size);
    rc = rc ? rc : publish(r, conf, v, from->vnic, err, err_size);
    rc = rc ? rc : let_pick_up(r, v, conf->pickup_s, err, err_size);
    if (!rc) {
        v->slot = (uint32_t)moat_slot_find(r->engine, c->vnic);
        r->n_vnics++;
    }
    return rc;
}

struct moat_replay *moat_replay_create(const struct moat_replay_conf *conf, char *err,
                                       size_t err_size)
{
    static const uint64_t seed[4] = {1, 2, 3, 4}; /* the same result each time */
    struct moat_engine_conf engine = {.n_slots = MOAT_REPLAY_VNICS_MAX,
                                      .n_sessions = N_SESSIONS,
                                      .now_ms = now_ms,
                                      .seed = seed,
                                      .inject = take_injected};
    struct moat_replay *r;

    if (in_use) {
        snprintf(err, err_size, "there is a replay already");
        return NULL;
    }
    if (!conf->n_vnics || conf->n_vnics > MOAT_REPLAY_VNICS_MAX) {
        snprintf(err, err_size, "%zu vNICs, 1 to %u are possible", conf->n_vnics,
                 MOAT_REPLAY_VNICS_MAX);
        return NULL;
    }
    r = calloc(1, sizeof *r);
    if (!r) {
        snprintf(err, err_size, "out of memory");
        return NULL;
    }
    in_use = true;
    clock_ms = r->turn_ms = START_MS;
    r->clock_us = START_MS * 1000ull;
    r->engine = moat_engine_create(&engine, err, err_size);
    if (!r->engine)
        goto fail;
    if (!moat_thread_self(r->engine)) {
        snprintf(err, err_size, "out of memory");
        goto fail;
    }
    for (size_t i = 0; i < conf->n_vnics; i++)
        if (add_vnic(r, conf, &conf->vnics[i], err, err_size))
            goto fail;
    return r;

fail:
    moat_replay_destroy(r);
    return NULL;
}

void moat_replay_destroy(struct moat_replay *r)
{
    if (!r)
        return;
    moat_engine_destroy(r->engine);
    free(r->frame);
    free(r);
    in_use = false;
}

/* --- the clock ------------------------------------------------------------------- */

static void housekeep(struct moat_replay *r)
{
    struct moat_event ev;

    for (unsigned n = 0; r->turn_ms + TURN_MS <= clock_ms && n < TURNS_MAX; n++) {
        r->turn_ms += TURN_MS;
        moat_engine_turn(r->engine);
    }
    r->turn_ms = clock_ms - clock_ms % TURN_MS;
    while (moat_event_take(&r->engine->events, &ev))
        continue; /* nobody listens */
}

static void advance(struct moat_replay *r, uint64_t time_us)
{
    if (!r->started)
        r->newest_us = time_us;
    r->started = true;
    if (time_us > r->newest_us) {
        uint64_t step = time_us - r->newest_us;

        r->clock_us += step < STEP_MAX_US ? step : STEP_MAX_US;
        r->newest_us = time_us;
    }
    clock_ms = r->clock_us / 1000;
    housekeep(r);
}

/* --- whose packet, and which way -------------------------------------------------- */

static bool covers(const struct moat_addr *a, const struct moat_pkt *p, const uint8_t *addr)
{
    unsigned family = p->family == MOAT_FAM_ARP ? MOAT_FAM_IP4 : p->family;
    unsigned whole = a->plen / 8, rest = a->plen % 8;

    return a->family == family && !memcmp(a->addr, addr, whole) &&
           (!rest || !((a->addr[whole] ^ addr[whole]) >> (8 - rest)));
}

static bool owns(const struct vnic *v, const struct moat_pkt *p, const uint8_t *addr)
{
    for (unsigned i = 0; i < v->conf.n_addrs; i++)
        if (covers(&v->conf.addrs[i], p, addr))
            return true;
    return false;
}

/* Those whose MAC is not known, if `unknown`, else all. */
static struct vnic *by_address(struct moat_replay *r, const struct moat_pkt *p, bool unknown,
                               enum moat_dir *dir)
{
    if (!p->family || !p->src)
        return NULL;
    for (int d = MOAT_FROM_VM; d <= MOAT_TO_VM; d++)
        for (size_t i = 0; i < r->n_vnics; i++) {
            struct vnic *v = &r->vnics[i];

            if (unknown && v->has_mac)
                continue;
            if (owns(v, p, d == MOAT_FROM_VM ? p->src : p->dst)) {
                *dir = (enum moat_dir)d;
                return v;
            }
        }
    return NULL;
}

static struct vnic *by_mac(struct moat_replay *r, const uint8_t *mac)
{
    for (size_t i = 0; i < r->n_vnics; i++)
        if (r->vnics[i].has_mac && !memcmp(r->vnics[i].conf.mac, mac, 6))
            return &r->vnics[i];
    return NULL;
}

/* The vNIC had no MAC: now it has. */
static void learn_mac(struct moat_replay *r, struct vnic *v, const uint8_t *mac)
{
    char err[128];

    if (v->has_mac || mac[0] & 1)
        return;
    memcpy(v->conf.mac, mac, 6);
    v->has_mac = !moat_slot_claim(r->engine, &v->conf, err, sizeof err);
}

static struct vnic *whose_frame(struct moat_replay *r, const struct moat_pkt *p, enum moat_dir *dir)
{
    struct vnic *v;

    if (p->len < ETH_LEN)
        return NULL;
    if ((v = by_mac(r, p->data + 6))) {
        *dir = MOAT_FROM_VM;
    } else if ((v = by_mac(r, p->data))) {
        *dir = MOAT_TO_VM;
    } else if ((v = by_address(r, p, true, dir))) {
        learn_mac(r, v, *dir == MOAT_FROM_VM ? p->data + 6 : p->data);
    } else if (p->data[0] & 1) {
        v = &r->vnics[0];
        *dir = MOAT_TO_VM;
    }
    return v;
}

static struct vnic *whose_packet(struct moat_replay *r, const struct moat_captured *c,
                                 const struct moat_pkt *p, enum moat_dir *dir)
{
    struct vnic *v = c->has_source ? by_mac(r, c->source) : NULL;

    *dir = MOAT_FROM_VM;
    if (!v) {
        v = by_address(r, p, false, dir);
        if (v && *dir == MOAT_FROM_VM && c->has_source)
            learn_mac(r, v, c->source);
    }
    if (!v && (c->to_all || p->ip_multicast)) {
        v = &r->vnics[0];
        *dir = MOAT_TO_VM;
    }
    return v;
}

/* --- a frame around a packet that has none ----------------------------------------- */

/* RFC 1112, section 6.4; RFC 2464, section 7. */
static void group_mac(const struct moat_pkt *p, uint8_t mac[6])
{
    if (p->family == MOAT_FAM_IP6) {
        mac[0] = mac[1] = 0x33;
        memcpy(mac + 2, p->dst + 12, 4);
    } else if (p->family == MOAT_FAM_IP4 && p->dst[0] >> 4 == 0xe) {
        memcpy(mac, "\x01\x00\x5e", 3);
        memcpy(mac + 3, p->dst + 1, 3);
        mac[3] &= 0x7f;
    } else {
        memset(mac, 0xff, 6);
    }
}

/* Bytes 0 to 13 of the frame; who is at the other end is not known. */
static void put_macs(const struct vnic *v, enum moat_dir dir, const struct moat_captured *c,
                     const struct moat_pkt *p, uint8_t *frame)
{
    static const uint8_t somebody[6] = {2, 0, 0, 0, 0, 0xfe};

    memcpy(frame + (dir == MOAT_FROM_VM ? 6 : 0), v->conf.mac, 6);
    memcpy(frame + (dir == MOAT_FROM_VM ? 0 : 6),
           dir == MOAT_TO_VM && c->has_source ? c->source : somebody, 6);
    if (c->to_all || (p->family && p->ip_multicast))
        group_mac(p, frame);
}

static struct vnic *frame_packet(struct moat_replay *r, const struct moat_captured *c,
                                 struct moat_pkt *p, enum moat_dir *dir)
{
    struct vnic *v;

    if (ETH_LEN + (size_t)c->len > r->allocated) {
        uint8_t *more = realloc(r->frame, ETH_LEN + (size_t)c->len);

        if (!more)
            return NULL;
        r->frame = more;
        r->allocated = ETH_LEN + (size_t)c->len;
    }
    memset(r->frame, 0, 12);
    r->frame[12] = (uint8_t)(c->ethertype >> 8);
    r->frame[13] = (uint8_t)c->ethertype;
    if (c->len)
        memcpy(r->frame + ETH_LEN, c->data, c->len);
    p->data = r->frame;
    p->len = ETH_LEN + c->len;
    p->total = c->total > UINT32_MAX - ETH_LEN ? UINT32_MAX : ETH_LEN + c->total;
    moat_parse(p);
    v = whose_packet(r, c, p, dir);
    if (v)
        put_macs(v, *dir, c, p, r->frame);
    return v;
}

/* --- a packet ---------------------------------------------------------------------- */

static void judge(struct moat_replay *r, const struct vnic *v, enum moat_dir dir,
                  struct moat_pkt *p, struct moat_replayed *out)
{
    struct moat_thread *t = moat_thread_self(r->engine);
    const struct moat_slot *slot = &r->engine->slots[v->slot];
    uint32_t passed;

    out->traced.flow.dir = (uint8_t)dir; /* take_injected() asks */
    r->now = out;
    p->by = MOAT_BY_SESSION;
    passed = moat_pipe_burst(t, v->port, dir, p, 1);
    r->now = NULL;
    moat_qsbr_enter(&r->engine->qsbr, t->reader);
    moat_explain(t, __atomic_load_n(&slot->view, __ATOMIC_ACQUIRE), dir, p, passed & 1,
                 &out->traced);
    moat_qsbr_leave(t->reader);
}

void moat_replay_packet(struct moat_replay *r, const struct moat_captured *c,
                        struct moat_replayed *out)
{
    struct moat_pkt p = {.data = c->data, .len = c->len, .total = c->total};
    enum moat_dir dir = MOAT_TO_VM;
    const struct vnic *v;

    memset(out, 0, sizeof *out);
    advance(r, c->time_us);
    if (c->ethernet) {
        moat_parse(&p);
        v = whose_frame(r, &p, &dir);
    } else {
        v = frame_packet(r, c, &p, &dir);
    }
    if (!v)
        return;
    out->judged = true;
    p = (struct moat_pkt){.data = p.data, .len = p.len, .total = p.total};
    judge(r, v, dir, &p, out);
    out->traced.seq = c->number;
    out->traced.time_us = c->time_us;
    out->traced.cap_len = c->len;
    out->traced.frame_len = c->total;
}

void moat_replay_counters(struct moat_replay *r, uint64_t out[MOAT_N_COUNTERS])
{
    uint64_t one[MOAT_N_COUNTERS];

    memset(out, 0, MOAT_N_COUNTERS * sizeof *out);
    for (size_t i = 0; i < r->n_vnics; i++) {
        moat_engine_counters(r->engine, r->vnics[i].slot, one);
        for (unsigned k = 0; k < MOAT_N_COUNTERS; k++)
            out[k] += one[k];
    }
}
