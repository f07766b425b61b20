/* SPDX-License-Identifier: Apache-2.0 */

/* Export walks the table with a cursor; each reply holds sessions of one vNIC.  Fields
 * are read one by one while packet threads may write them: a record is a snapshot of a
 * living session, exact once the slot is frozen.
 *
 * An imported session starts lenient (see moat_tcp_track()) until one packet was seen each
 * way, because segments may have been in flight when the last record was written. */

#include "transfer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "engine.h"
#include "slot.h"
#include "state_other.h"
#include "state_tcp.h"

#define LOAD(P) __atomic_load_n(P, __ATOMIC_RELAXED)

/* serial: of the slot's ruleset. */
static void session_to_rec(const struct moat_session_table *t, const struct moat_session *s,
                           uint32_t serial, uint32_t now_s, struct moat_ses_rec *r)
{
    struct moat_session_whole w;

    moat_session_read(t, s, &w);
    memset(r, 0, sizeof *r);
    r->family = w.s.key.family;
    r->proto = w.s.key.proto;
    r->dir = (uint8_t)moat_session_dir(&w.s);
    r->flags = w.s.flags & (uint8_t)~MOAT_SES_F_INTERNAL;
    if (w.s.serial != serial)
        r->flags |= MOAT_SES_F_STALE;
    r->vlan = w.s.key.vlan;
    r->lport = w.s.key.lport;
    r->rport = w.s.key.rport;
    r->rule = w.rule;
    r->generation = w.generation;
    r->age_s = now_s - w.created;
    r->idle_s = now_s - w.s.seen;
    for (int d = 0; d < 2; d++) {
        r->packets[d] = w.packets[d];
        r->bytes[d] = w.bytes[d];
        r->side[d] = w.s.side[d];
    }
    if (r->proto != 6)
        r->side[0].wscale = w.s.marks & MOAT_SES_MARK_ERROR ? MOAT_SES_ERROR_CAME : 0;
    if (r->family == MOAT_FAM_IP4) {
        memcpy(r->local, &w.s.key.local, 4);
        memcpy(r->remote, &w.s.key.remote, 4);
    } else {
        memcpy(r->local, w.local6, 16);
        memcpy(r->remote, w.remote6, 16);
    }
}

static unsigned put_frame(const struct moat_ses_rec *r, uint8_t *out)
{
    unsigned len = moat_ses_encode(r, out + 4);

    moat_put_be(out, XXH32(out + 4, len, MOAT_SES_MAGIC), 4);
    return 4 + len;
}

/* Length of the frame at in, or 0 with the reason in err. */
static unsigned get_frame(const uint8_t *in, size_t n, struct moat_ses_rec *r, char *err,
                          size_t err_size)
{
    uint64_t sum;
    unsigned len;

    if (n < 6 || in[5] < MOAT_SES_LEN4 || in[5] > MOAT_SES_LEN6 || n < 4u + in[5]) {
        snprintf(err, err_size, "session record is truncated");
        return 0;
    }
    len = in[5];
    moat_get_be(in, &sum, 4);
    if (XXH32(in + 4, len, MOAT_SES_MAGIC) != (uint32_t)sum)
        r->family = 0;
    else if (!moat_ses_decode(in + 4, len, r))
        r->family = 1;
    return 4 + len;
}

static bool wanted(const struct moat_session *s, uint32_t tag, uint64_t since_s)
{
    return s->key.tag == tag && LOAD(&s->seen) >= since_s && !(LOAD(&s->flags) & MOAT_SES_F_CUT);
}

/* View of the slot whose sessions a reply starting at cursor is about: the asked one, or
 * that of the next live session; NULL: it is void.  Valid within the burst. */
static const struct moat_view *view_of(struct moat_engine *e, int asked, uint32_t tag)
{
    uint32_t index = asked >= 0 ? (uint32_t)asked : (tag & 0xfff) - 1;
    const struct moat_view *v =
        index < e->conf.n_slots ? __atomic_load_n(&e->slots[index].view, __ATOMIC_ACQUIRE) : NULL;

    return v && (asked >= 0 || v->tag == tag) ? v : NULL;
}

int moat_transfer_export(struct moat_engine *e, const struct moat_ctl_sessions *ask, void *buf,
                         size_t size)
{
    struct moat_ctl_sessions_reply *reply = buf;
    uint8_t *out = (uint8_t *)(reply + 1), *end = (uint8_t *)buf + size;
    uint32_t now_s = (uint32_t)(moat_engine_now_ms(e) / 1000);
    uint32_t n = moat_session_table_size(e->sessions), i;
    const struct moat_view *v = NULL;
    struct moat_thread *self = moat_thread_self(e);
    int asked = -1;

    if (ask->vnic[0]) {
        asked = moat_slot_find(e, ask->vnic);
        if (asked < 0)
            return -ENOENT;
    }
    if (!self || size < sizeof *reply + MOAT_SES_FRAME_MAX)
        return -ENOMEM;
    memset(reply, 0, sizeof *reply);
    reply->now_s = now_s;
    moat_qsbr_enter(&e->qsbr, self->reader);
    if (asked >= 0)
        v = view_of(e, asked, 0);
    for (i = ask->cursor; i < n && (v || asked < 0); i++) {
        const struct moat_session *s = moat_session_at(e->sessions, i);
        uint32_t live = __atomic_load_n(&s->key.tag, __ATOMIC_ACQUIRE);
        struct moat_ses_rec r;

        if (!live)
            continue;
        if (asked < 0 && !(v && v->tag == live)) {
            if (v)
                break; /* another vNIC's: the next reply's */
            v = view_of(e, -1, live);
        }
        if (!v || !wanted(s, v->tag, ask->since_s))
            continue;
        if ((size_t)(end - out) < MOAT_SES_FRAME_MAX)
            break;
        session_to_rec(e->sessions, s, v->serial, now_s, &r);
        out += put_frame(&r, out);
        reply->n++;
    }
    reply->cursor = i < n && (v || asked < 0) ? i : 0;
    if (v) {
        const struct moat_slot_rec *rec = &e->map->slots[v->index];

        memcpy(reply->vnic, rec->conf[rec->conf_index & 1].vnic, sizeof reply->vnic);
    }
    moat_qsbr_leave(self->reader);
    return (int)(out - (uint8_t *)buf);
}

static const char *check_rec(const struct moat_ses_rec *r)
{
    if (r->family == 0)
        return "checksum of a session record is wrong";
    if (r->family == 1)
        return "session record of another version or with an impossible field";
    if (r->proto == 6 ? !moat_tcp_valid(r->side) : !moat_other_valid(r->side))
        return "session record with an impossible state";
    return NULL;
}

static void rec_to_session(const struct moat_session_table *t, const struct moat_ses_rec *r,
                           const struct moat_view *v, bool same_policy, uint32_t now_s,
                           struct moat_session_whole *w, uint64_t *hash)
{
    struct moat_session *s = &w->s;
    struct moat_pkt p = {.family = r->family,
                         .proto = r->proto,
                         .vlan = r->vlan,
                         .sport = r->lport,
                         .dport = r->rport,
                         .src = r->local,
                         .dst = r->remote};

    memset(w, 0, sizeof *w);
    /* Ports of an ICMP query are stored as the key has them. */
    *hash = moat_session_key(t, &p, MOAT_FROM_VM, v->tag, &s->key);
    s->serial = same_policy && !(r->flags & MOAT_SES_F_STALE) ? v->serial : 0;
    s->seen = now_s - (r->idle_s < now_s ? r->idle_s : now_s);
    w->created = now_s - (r->age_s < now_s ? r->age_s : now_s);
    s->marks = r->dir == MOAT_TO_VM ? MOAT_SES_MARK_TO_VM : 0;
    s->flags = (r->flags & (uint8_t) ~(MOAT_SES_F_INTERNAL | MOAT_SES_F_STALE)) |
               MOAT_SES_F_IMPORTED | MOAT_SES_F_WAIT_FROM_VM | MOAT_SES_F_WAIT_TO_VM;
    memcpy(s->side, r->side, sizeof s->side);
    if (r->proto != 6) {
        s->marks |= s->side[0].wscale & MOAT_SES_ERROR_CAME ? MOAT_SES_MARK_ERROR : 0;
        s->side[0].wscale = 0;
    } else if (moat_tcp_half_open(s->side)) {
        s->flags |= MOAT_SES_F_HALF_OPEN;
    }
    w->rule = r->rule;
    w->generation = r->generation;
    memcpy(w->packets, r->packets, sizeof w->packets);
    memcpy(w->bytes, r->bytes, sizeof w->bytes);
    if (r->family == MOAT_FAM_IP6) {
        memcpy(w->local6, r->local, 16);
        memcpy(w->remote6, r->remote, 16);
    }
}

/* The slot does not pass packets yet: nobody else writes its sessions. */
static bool take_session(struct moat_engine *e, struct moat_thread *self, struct moat_slot *slot,
                         const struct moat_session_whole *s, uint64_t hash)
{
    enum moat_reason reason;
    bool found;
    uint32_t index;

    if (LOAD(&slot->sessions) >= slot->view->max_sessions)
        return false;
    index = moat_session_insert(e->sessions, self, hash, s, &found, &reason);
    if (index == MOAT_NO_SESSION)
        return false;
    if (s->s.flags & MOAT_SES_F_HALF_OPEN)
        __atomic_fetch_add(&slot->half_open, 1, __ATOMIC_RELAXED);
    if (found) {
        if (moat_session_renew(e->sessions, moat_session_at(e->sessions, index), s) &
            MOAT_SES_F_HALF_OPEN)
            moat_slot_half_open_ended(slot);
    } else {
        __atomic_fetch_add(&slot->sessions, 1, __ATOMIC_RELAXED);
        moat_count(moat_thread_counters(self, slot->index), MOAT_C_SESSIONS_IMPORTED, 1);
    }
    return true;
}

static void report(struct moat_engine *e, const char *vnic, const char *text)
{
    struct moat_event ev = {.type = MOAT_EV_REFUSED};

    snprintf(ev.vnic, sizeof ev.vnic, "%s", vnic);
    snprintf(ev.text, sizeof ev.text, "%s", text);
    moat_event_post(&e->events, &ev, true);
}

/* Every frame must lie within len before any is taken. */
static int check_frames(const uint8_t *p, size_t len, uint32_t n, char *err, size_t err_size)
{
    for (uint32_t i = 0; i < n; i++) {
        struct moat_ses_rec r;
        unsigned l = get_frame(p, len, &r, err, err_size);

        if (!l)
            return -EINVAL;
        p += l;
        len -= l;
    }
    if (len) {
        snprintf(err, err_size, "%zu bytes behind the last session record", len);
        return -EINVAL;
    }
    return 0;
}

int moat_transfer_import(struct moat_engine *e, const struct moat_ctl_import *head,
                         const void *frames, size_t len, struct moat_ctl_import_reply *reply,
                         char *err, size_t err_size)
{
    uint32_t now_s = (uint32_t)(moat_engine_now_ms(e) / 1000);
    struct moat_thread *self = moat_thread_self(e);
    const uint8_t *p = frames;
    struct moat_slot *slot;
    int index = moat_slot_find(e, head->vnic);

    memset(reply, 0, sizeof *reply);
    if (index < 0) {
        snprintf(err, err_size, "no slot for vNIC %s", head->vnic);
        return -ENOENT;
    }
    slot = &e->slots[index];
    if (!self || slot->view->state != MOAT_SLOT_ARRIVING) {
        snprintf(err, err_size, "vNIC %s is %s: sessions are taken by an arriving one only",
                 head->vnic, moat_slot_state_name(slot->view->state));
        return -EBUSY;
    }
    if (check_frames(p, len, head->n, err, err_size))
        return -EINVAL;
    for (uint32_t i = 0; i < head->n; i++) {
        const char *wrong = NULL;
        struct moat_ses_rec r;
        struct moat_session_whole s;
        uint64_t hash;
        unsigned l = get_frame(p, len, &r, err, err_size);

        p += l;
        len -= l;
        wrong = check_rec(&r);
        if (!wrong) {
            rec_to_session(e->sessions, &r, slot->view, head->same_policy, now_s, &s, &hash);
            if (!take_session(e, self, slot, &s, hash))
                wrong = "no room for a session record";
        }
        if (wrong) {
            if (!reply->refused++)
                report(e, head->vnic, wrong);
            moat_count(moat_thread_counters(self, slot->index), MOAT_C_IMPORT_REFUSED, 1);
        } else {
            reply->accepted++;
        }
    }
    return 0;
}
