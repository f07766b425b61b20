/* SPDX-License-Identifier: Apache-2.0 */

/* Every field goes through one of two cursors, which know their bounds: a writer
 * that runs full and a reader that runs dry turn bad and stay so; the one check
 * is at the end.  A decoder never trusts a length before it has compared it with
 * what is left. */

#include "wire.h"

#include <errno.h>
#include <string.h>

#include "moat/ruleset.h"
#include "moat/session.h"

struct out {
    uint8_t *p, *end;
    bool bad;
};

struct in {
    const uint8_t *p, *end;
    const char *bad; /* reason */
};

static void put(struct out *o, uint64_t v, unsigned n)
{
    if (o->bad || (size_t)(o->end - o->p) < n) {
        o->bad = true;
        return;
    }
    o->p = moat_put_be(o->p, v, n);
}

static void put_bytes(struct out *o, const void *src, size_t n)
{
    if (o->bad || (size_t)(o->end - o->p) < n) {
        o->bad = true;
        return;
    }
    if (n)
        memcpy(o->p, src, n);
    o->p += n;
}

static void put_str(struct out *o, const char *s, size_t field)
{
    size_t n = strnlen(s, field);

    if (n == field) {
        o->bad = true;
        return;
    }
    put(o, n, 2);
    put_bytes(o, s, n);
}

static void spoil(struct in *i, const char *why)
{
    if (!i->bad)
        i->bad = why;
}

static uint64_t get(struct in *i, unsigned n)
{
    uint64_t v = 0;

    if (i->bad)
        return 0;
    if ((size_t)(i->end - i->p) < n) {
        spoil(i, "truncated frame");
        return 0;
    }
    i->p = moat_get_be(i->p, &v, n);
    return v;
}

static void get_bytes(struct in *i, void *dst, size_t n)
{
    if (i->bad)
        return;
    if ((size_t)(i->end - i->p) < n) {
        spoil(i, "truncated frame");
        return;
    }
    memcpy(dst, i->p, n);
    i->p += n;
}

static void get_str(struct in *i, char *dst, size_t field)
{
    size_t n = get(i, 2);

    if (n >= field) {
        spoil(i, "string too long");
        return;
    }
    get_bytes(i, dst, n);
    for (size_t k = 0; !i->bad && k < n; k++) /* they end up in logs and in the database */
        if ((unsigned char)dst[k] < 0x20 || dst[k] == 0x7f)
            spoil(i, "control character in a string");
    dst[i->bad ? 0 : n] = '\0';
}

/* --- settings and identity -------------------------------------------------- */

static void put_settings(struct out *o, const struct moat_settings *s)
{
    put(o, s->on_missing_policy, 1);
    put(o, s->on_missing_state, 1);
    put(o, s->on_unprotected_host, 1);
    put(o, s->tcp_loose, 1);
    put(o, s->spoof, 1);
    put(o, s->transfer_sessions, 1);
    put(o, s->quarantine, 1);
    put(o, s->vlan, 1);
    put(o, s->ra_guard, 1);
    put(o, s->dhcp_guard, 1);
    put(o, s->n_ethertypes, 1);
    for (unsigned k = 0; k < MOAT_ETHERTYPES_MAX; k++)
        put(o, s->ethertypes[k], 2);
    put(o, s->pickup_s, 4);
    put(o, s->hold_ms, 4);
    put(o, s->enroll_s, 4);
    put(o, s->max_sessions, 4);
    put(o, s->max_half_open, 4);
    put(o, s->max_new, 4);
    put(o, s->max_fragments, 4);
    put(o, s->max_logs, 4);
    for (unsigned k = 0; k < MOAT_N_TIMERS; k++)
        put(o, s->timers[k], 4);
}

static uint8_t get_upto(struct in *i, unsigned max)
{
    uint64_t v = get(i, 1);

    if (v > max)
        spoil(i, "setting out of range");
    return (uint8_t)v;
}

static uint32_t get_max(struct in *i, uint32_t max, const char *why)
{
    uint64_t v = get(i, 4);

    if (v > max)
        spoil(i, why);
    return (uint32_t)v;
}

static void get_settings(struct in *i, struct moat_settings *s)
{
    memset(s, 0, sizeof *s);
    s->on_missing_policy = get_upto(i, MOAT_FAIL_ALLOW);
    s->on_missing_state = get_upto(i, MOAT_FAIL_PICKUP);
    s->on_unprotected_host = get_upto(i, MOAT_FAIL_PICKUP);
    s->tcp_loose = get_upto(i, 1);
    s->spoof = get_upto(i, MOAT_SPOOF_LEARN);
    s->transfer_sessions = get_upto(i, 1);
    s->quarantine = get_upto(i, 1);
    s->vlan = get_upto(i, MOAT_VLAN_INSPECT);
    s->ra_guard = get_upto(i, 1);
    s->dhcp_guard = get_upto(i, 1);
    s->n_ethertypes = get_upto(i, MOAT_ETHERTYPES_MAX);
    for (unsigned k = 0; k < MOAT_ETHERTYPES_MAX; k++) {
        s->ethertypes[k] = (uint16_t)get(i, 2);
        if (k < s->n_ethertypes ? moat_ethertype_is_judged(s->ethertypes[k]) : s->ethertypes[k])
            spoil(i, "ethertype out of range");
    }
    s->pickup_s = get_max(i, MOAT_PICKUP_MAX, "pickup out of range");
    s->hold_ms = get_max(i, MOAT_HOLD_MAX, "hold out of range");
    s->enroll_s = get_max(i, MOAT_ENROLL_MAX, "enrolment out of range");
    s->max_sessions = (uint32_t)get(i, 4);
    s->max_half_open = (uint32_t)get(i, 4);
    s->max_new = (uint32_t)get(i, 4);
    s->max_fragments = (uint32_t)get(i, 4);
    s->max_logs = (uint32_t)get(i, 4);
    for (unsigned k = 0; k < MOAT_N_TIMERS; k++)
        s->timers[k] = get_max(i, MOAT_TIMER_MAX, "timer out of range");
}

static void put_conf(struct out *o, const struct moat_slot_conf *c)
{
    if (c->n_addrs > MOAT_ADDRS_MAX) {
        o->bad = true;
        return;
    }
    put_str(o, c->vnic, sizeof c->vnic);
    put_str(o, c->vm, sizeof c->vm);
    put_str(o, c->network, sizeof c->network);
    put_bytes(o, c->mac, sizeof c->mac);
    put(o, c->n_addrs, 1);
    for (unsigned k = 0; k < c->n_addrs; k++) {
        put(o, c->addrs[k].family, 1);
        put(o, c->addrs[k].plen, 1);
        put_bytes(o, c->addrs[k].addr, 16);
    }
    put_settings(o, &c->settings);
    put(o, c->epoch, 8);
}

static void get_conf(struct in *i, struct moat_slot_conf *c)
{
    memset(c, 0, sizeof *c);
    get_str(i, c->vnic, sizeof c->vnic);
    get_str(i, c->vm, sizeof c->vm);
    get_str(i, c->network, sizeof c->network);
    get_bytes(i, c->mac, sizeof c->mac);
    c->n_addrs = (uint8_t)get(i, 1);
    if (c->n_addrs > MOAT_ADDRS_MAX) {
        spoil(i, "too many addresses");
        c->n_addrs = 0;
    }
    for (unsigned k = 0; k < c->n_addrs && !i->bad; k++) {
        struct moat_addr *a = &c->addrs[k];
        a->family = (uint8_t)get(i, 1);
        a->plen = (uint8_t)get(i, 1);
        get_bytes(i, a->addr, 16);
        if ((a->family != 4 || a->plen > 32) && (a->family != 6 || a->plen > 128))
            spoil(i, "address out of range");
    }
    get_settings(i, &c->settings);
    c->epoch = get(i, 8);
}

/* --- bodies ------------------------------------------------------------------ */

static void put_body(struct out *o, const struct wire *w)
{
    switch ((enum wire_type)w->type) {
    case WIRE_REQUEST:
        put(o, w->flags, 2);
        put_str(o, w->vnic, sizeof w->vnic);
        put_str(o, w->host, sizeof w->host);
        put(o, w->epoch, 8);
        break;
    case WIRE_REFUSE:
        put(o, w->flags, 2);
        put_str(o, w->text, sizeof w->text);
        break;
    case WIRE_CANCEL:
        put_str(o, w->text, sizeof w->text);
        break;
    case WIRE_POLICY:
        put_conf(o, &w->conf);
        put(o, w->enroll_left_s, 4);
        put(o, w->generation, 8);
        put_bytes(o, w->digest, sizeof w->digest);
        if (w->blob_len > MOAT_RULESET_VNIC_MAX)
            o->bad = true;
        put(o, w->blob_len, 4);
        put_bytes(o, w->blob, w->blob_len);
        break;
    case WIRE_SESSIONS:
        put(o, w->round, 4);
        put(o, w->n, 4);
        put_bytes(o, w->blob, w->blob_len);
        break;
    case WIRE_ROUND:
        put(o, w->round, 4);
        put(o, w->records, 8);
        break;
    case WIRE_FINAL:
        put(o, w->flags, 2);
        put(o, w->epoch, 8);
        put(o, w->round, 4);
        put(o, w->records, 8);
        put(o, w->final_records, 8);
        put(o, w->final_bytes, 8);
        put(o, w->live, 8);
        break;
    case WIRE_FINAL_ACK:
        put(o, w->epoch, 8);
        put(o, w->accepted, 8);
        put(o, w->refused, 8);
        break;
    case WIRE_DONE:
        put(o, w->wait_us, 8);
        break;
    case WIRE_FENCED:
    case WIRE_OPENED:
    case WIRE_TAKE_BACK:
        put(o, w->epoch, 8);
        break;
    case WIRE_TAKEN_BACK:
        put(o, w->epoch, 8);
        put(o, w->ok, 1);
        put_str(o, w->text, sizeof w->text);
        break;
    case WIRE_START:
    case WIRE_STOP:
    case WIRE_STARTED:
        break;
    case WIRE_N_TYPES:
    default:
        o->bad = true;
    }
}

/* The records of a SESSIONS frame must fill it exactly. */
static void check_sessions(struct in *i, const struct wire *w)
{
    size_t off = 0;
    uint32_t n = 0;

    while (off < w->blob_len && n < w->n) {
        const uint8_t *p = w->blob + off;
        size_t left = w->blob_len - off;

        if (left < 4 + MOAT_SES_LEN4 || p[4] != MOAT_SES_VERSION ||
            (p[5] != MOAT_SES_LEN4 && p[5] != MOAT_SES_LEN6) || left < 4u + p[5]) {
            spoil(i, "malformed session record");
            return;
        }
        off += 4u + p[5];
        n++;
    }
    if (off != w->blob_len || n != w->n)
        spoil(i, "session records do not fill their frame");
}

static void get_body(struct in *i, struct wire *w)
{
    switch ((enum wire_type)w->type) {
    case WIRE_REQUEST:
        w->flags = (uint16_t)get(i, 2);
        get_str(i, w->vnic, sizeof w->vnic);
        get_str(i, w->host, sizeof w->host);
        w->epoch = get(i, 8);
        break;
    case WIRE_REFUSE:
        w->flags = (uint16_t)get(i, 2);
        get_str(i, w->text, sizeof w->text);
        break;
    case WIRE_CANCEL:
        get_str(i, w->text, sizeof w->text);
        break;
    case WIRE_POLICY:
        get_conf(i, &w->conf);
        w->enroll_left_s = get_max(i, MOAT_ENROLL_MAX, "enrolment out of range");
        w->generation = get(i, 8);
        get_bytes(i, w->digest, sizeof w->digest);
        w->blob_len = get(i, 4);
        if (w->blob_len > MOAT_RULESET_VNIC_MAX || w->blob_len > (size_t)(i->end - i->p))
            spoil(i, "ruleset of a bad length");
        if (i->bad)
            break;
        w->blob = i->p;
        i->p += w->blob_len;
        break;
    case WIRE_SESSIONS:
        w->round = (uint32_t)get(i, 4);
        w->n = (uint32_t)get(i, 4);
        if (i->bad)
            break;
        w->blob = i->p;
        w->blob_len = (size_t)(i->end - i->p);
        i->p = i->end;
        check_sessions(i, w);
        break;
    case WIRE_ROUND:
        w->round = (uint32_t)get(i, 4);
        w->records = get(i, 8);
        break;
    case WIRE_FINAL:
        w->flags = (uint16_t)get(i, 2);
        w->epoch = get(i, 8);
        w->round = (uint32_t)get(i, 4);
        w->records = get(i, 8);
        w->final_records = get(i, 8);
        w->final_bytes = get(i, 8);
        w->live = get(i, 8);
        break;
    case WIRE_FINAL_ACK:
        w->epoch = get(i, 8);
        w->accepted = get(i, 8);
        w->refused = get(i, 8);
        break;
    case WIRE_DONE:
        w->wait_us = get(i, 8);
        break;
    case WIRE_FENCED:
    case WIRE_OPENED:
    case WIRE_TAKE_BACK:
        w->epoch = get(i, 8);
        break;
    case WIRE_TAKEN_BACK:
        w->epoch = get(i, 8);
        w->ok = get_upto(i, 1);
        get_str(i, w->text, sizeof w->text);
        break;
    case WIRE_START:
    case WIRE_STOP:
    case WIRE_STARTED:
        break;
    case WIRE_N_TYPES:
    default:
        spoil(i, "unknown type of frame");
    }
}

size_t wire_encode(const struct wire *w, uint8_t *buf, size_t size)
{
    struct out o = {.p = buf, .end = buf + size};

    put(&o, MOAT_WIRE_MAGIC, 4);
    put(&o, MOAT_WIRE_VERSION, 2);
    put(&o, w->type, 2);
    put(&o, 0, 4);
    put_body(&o, w);
    if (o.bad || o.p - buf - MOAT_WIRE_HEAD > (long)MOAT_WIRE_MAX)
        return 0;
    moat_put_be(buf + 8, (uint64_t)(o.p - buf - MOAT_WIRE_HEAD), 4);
    return (size_t)(o.p - buf);
}

long wire_frame_len(const uint8_t *p, size_t n, const char **why)
{
    struct in i = {.p = p, .end = p + n};

    if (n < MOAT_WIRE_HEAD)
        return 0;
    if (get(&i, 4) != MOAT_WIRE_MAGIC) {
        *why = "not an agent of Moat";
        return -EPROTO;
    }
    if (get(&i, 2) != MOAT_WIRE_VERSION) {
        *why = "another version of the protocol";
        return -EPROTO;
    }
    uint64_t type = get(&i, 2), len = get(&i, 4);
    if (type == 0 || type >= WIRE_N_TYPES) {
        *why = "unknown type of frame";
        return -EPROTO;
    }
    if (len > MOAT_WIRE_MAX) {
        *why = "frame too long";
        return -EPROTO;
    }
    return (long)(MOAT_WIRE_HEAD + len);
}

int wire_decode(const uint8_t *p, size_t n, struct wire *w, const char **why)
{
    memset(w, 0, sizeof *w);
    long len = wire_frame_len(p, n, why);
    if (len < 0)
        return -EPROTO;
    if (len == 0 || (size_t)len != n) {
        *why = "truncated frame";
        return -EPROTO;
    }
    struct in i = {.p = p + MOAT_WIRE_HEAD, .end = p + n};
    w->type = (uint16_t)(p[6] << 8 | p[7]);
    get_body(&i, w);
    if (!i.bad && i.p != i.end)
        spoil(&i, "trailing bytes in a frame");
    if (i.bad) {
        *why = i.bad;
        return -EPROTO;
    }
    return 0;
}

const char *wire_type_name(unsigned type)
{
    static const char *const names[] = {
        "?",      "request", "refuse",    "policy", "start",   "stop",   "sessions",  "round",
        "fenced", "final",   "final-ack", "done",   "started", "opened", "take-back", "taken-back",
        "cancel"};
    _Static_assert(sizeof names / sizeof *names == WIRE_N_TYPES, "a name for each type");

    return type < WIRE_N_TYPES ? names[type] : "?";
}
