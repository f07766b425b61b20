/* SPDX-License-Identifier: Apache-2.0 */

/* A datagram's life:
 *
 *   WAITING --first fragment--> JUDGING --admitted--> ADMITTED --complete--> forgotten
 *      \____________________________\_______________________\__ CONDEMNED --30 s--> forgotten
 *
 * What has come is a bitmap with a bit for each 8 octets, the unit of fragment offsets; a
 * second one has the starts of fragments, so that an exact duplicate is told from an overlap.
 *
 * A datagram is found by a chain of its bucket, under the bucket's lock; whatever else is
 * in it is under that lock too.  Free datagrams and held frames have a lock of their own, taken
 * last.  Counts per slot are atomic: a reservation that is too much is given back. */

#include "fragment.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "hash.h"
#include "spin.h"

#define DEFAULT_DATAGRAMS 4096
#define DEFAULT_HELD 256
#define STRIPES 256
#define AGE_SLICES 40
#define UNITS 8192
#define WORDS (UNITS / 64)
#define NONE UINT32_MAX

enum state { FREE, WAITING, JUDGING, ADMITTED, CONDEMNED };

struct id {
    uint32_t slot, tag, id;
    uint16_t vlan;
    uint8_t dir, family, proto, pad[7];
    uint8_t src[16], dst[16];
};

struct datagram {
    struct id id;
    uint32_t next, bucket;
    uint32_t started_s, serial;
    uint32_t covered; /* octets that have come */
    uint32_t end;     /* of the farthest */
    uint32_t total;   /* once the last fragment has told; else 0 */
    uint32_t ticket;  /* another one each time that this entry is used */
    uint8_t state;    /* FREE is read without the lock */
    uint8_t n_held;
    uint32_t held[MOAT_FRAGMENT_HELD];
    struct moat_fragment_session session;
    uint64_t came[WORDS], starts[WORDS];
};

struct frame {
    uint32_t len, end;
    bool last;
    uint8_t bytes[MOAT_FRAGMENT_HELD_BYTES];
};

struct moat_fragments {
    struct moat_fragment_conf conf;
    uint32_t mask;
    uint32_t *buckets;
    struct datagram *datagrams;
    struct frame *frames;
    uint32_t *free_datagrams, *free_frames;
    uint32_t n_free_datagrams, n_free_frames;
    uint32_t *used, *held; /* by slot; atomic */
    uint32_t age_next;
    uint8_t free_lock;
    uint8_t stripes[STRIPES];
};

/* --- life --- */

void moat_fragments_destroy(struct moat_fragments *f)
{
    if (!f)
        return;
    free(f->buckets);
    free(f->datagrams);
    free(f->frames);
    free(f->free_datagrams);
    free(f->free_frames);
    free(f->used);
    free(f->held);
    free(f);
}

struct moat_fragments *moat_fragments_create(const struct moat_fragment_conf *conf)
{
    struct moat_fragments *f = calloc(1, sizeof *f);
    uint32_t n_buckets = 1;

    if (!f)
        return NULL;
    f->conf = *conf;
    if (!f->conf.n_datagrams)
        f->conf.n_datagrams = DEFAULT_DATAGRAMS;
    if (!f->conf.n_held)
        f->conf.n_held = DEFAULT_HELD;
    while (n_buckets < f->conf.n_datagrams)
        n_buckets *= 2;
    f->mask = n_buckets - 1;
    f->buckets = malloc(n_buckets * sizeof *f->buckets);
    /* Zeroed by the kernel when first touched: nobody pays for what is not used. */
    f->datagrams = calloc(f->conf.n_datagrams, sizeof *f->datagrams);
    f->frames = calloc(f->conf.n_held, sizeof *f->frames);
    f->free_datagrams = malloc(f->conf.n_datagrams * sizeof *f->free_datagrams);
    f->free_frames = malloc(f->conf.n_held * sizeof *f->free_frames);
    f->used = calloc(f->conf.n_slots, sizeof *f->used);
    f->held = calloc(f->conf.n_slots, sizeof *f->held);
    if (!f->buckets || !f->datagrams || !f->frames || !f->free_datagrams || !f->free_frames ||
        !f->used || !f->held) {
        moat_fragments_destroy(f);
        errno = ENOMEM;
        return NULL;
    }
    memset(f->buckets, 0xff, n_buckets * sizeof *f->buckets);
    while (f->n_free_datagrams < f->conf.n_datagrams) {
        f->free_datagrams[f->n_free_datagrams] = f->conf.n_datagrams - 1 - f->n_free_datagrams;
        f->n_free_datagrams++;
    }
    for (; f->n_free_frames < f->conf.n_held; f->n_free_frames++)
        f->free_frames[f->n_free_frames] = f->n_free_frames;
    return f;
}

/* --- free lists and counts --- */

static uint32_t take(struct moat_fragments *f, uint32_t *list, uint32_t *n)
{
    uint32_t i;

    moat_spin_lock(&f->free_lock);
    i = *n ? list[--*n] : NONE;
    moat_spin_unlock(&f->free_lock);
    return i;
}

static void give(struct moat_fragments *f, uint32_t *list, uint32_t *n, uint32_t i)
{
    moat_spin_lock(&f->free_lock);
    list[(*n)++] = i;
    moat_spin_unlock(&f->free_lock);
}

/* False: the slot has its share already. */
static bool reserve(uint32_t *count, uint32_t limit)
{
    if (__atomic_add_fetch(count, 1, __ATOMIC_RELAXED) <= limit)
        return true;
    __atomic_fetch_sub(count, 1, __ATOMIC_RELAXED);
    return false;
}

static void give_frame(struct moat_fragments *f, uint32_t slot, uint32_t frame)
{
    give(f, f->free_frames, &f->n_free_frames, frame);
    __atomic_fetch_sub(&f->held[slot], 1, __ATOMIC_RELAXED);
}

/* --- datagrams; under the bucket's lock --- */

static void id_of(const struct moat_fragment_ctx *c, const struct moat_pkt *p, struct id *id)
{
    unsigned len = p->family == MOAT_FAM_IP6 ? 16 : 4;

    memset(id, 0, sizeof *id);
    id->slot = c->slot;
    id->tag = c->tag;
    id->id = p->frag_id;
    id->vlan = p->vlan;
    id->dir = (uint8_t)c->dir;
    id->family = p->family;
    id->proto = p->family == MOAT_FAM_IP4 ? p->proto : 0; /* RFC 791, section 3.2; RFC 8200, 4.5 */
    memcpy(id->src, p->src, len);
    memcpy(id->dst, p->dst, len);
}

static uint32_t bucket_of(const struct moat_fragments *f, const struct id *id)
{
    uint64_t w[sizeof *id / 8], h = f->conf.seed[0];

    _Static_assert(sizeof *id % 8 == 0, "hashed as words");
    memcpy(w, id, sizeof w);
    for (unsigned i = 0; i < sizeof *id / 8; i++)
        h = moat_hash_mum(h ^ w[i] ^ 0x243f6a8885a308d3, f->conf.seed[1] ^ 0x13198a2e03707344);
    return (uint32_t)h & f->mask;
}

static void drop_held(struct moat_fragments *f, struct datagram *d)
{
    while (d->n_held)
        give_frame(f, d->id.slot, d->held[--d->n_held]);
}

static void forget(struct moat_fragments *f, struct datagram *d)
{
    uint32_t i = (uint32_t)(d - f->datagrams), *link = &f->buckets[d->bucket];

    while (*link != i)
        link = &f->datagrams[*link].next;
    *link = d->next;
    drop_held(f, d);
    __atomic_fetch_sub(&f->used[d->id.slot], 1, __ATOMIC_RELAXED);
    __atomic_store_n(&d->state, FREE, __ATOMIC_RELAXED);
    give(f, f->free_datagrams, &f->n_free_datagrams, i);
}

/* Another thread's clock may be ahead. */
static bool is_dead(const struct datagram *d, uint32_t now_s)
{
    return (int32_t)(now_s - d->started_s) >= MOAT_FRAGMENT_S;
}

static struct datagram *find(struct moat_fragments *f, uint32_t bucket, const struct id *id,
                             uint32_t now_s)
{
    uint32_t i = f->buckets[bucket];

    while (i != NONE) {
        struct datagram *d = &f->datagrams[i];

        i = d->next;
        if (is_dead(d, now_s))
            forget(f, d);
        else if (!memcmp(&d->id, id, sizeof *id))
            return d;
    }
    return NULL;
}

static struct datagram *begin(struct moat_fragments *f, const struct moat_fragment_ctx *c,
                              uint32_t bucket, const struct id *id, enum moat_reason *reason)
{
    struct datagram *d;
    uint32_t i, ticket;

    *reason = MOAT_R_FRAG_QUOTA;
    if (!reserve(&f->used[c->slot], c->limit))
        return NULL;
    i = take(f, f->free_datagrams, &f->n_free_datagrams);
    if (i == NONE) {
        __atomic_fetch_sub(&f->used[c->slot], 1, __ATOMIC_RELAXED);
        *reason = MOAT_R_TABLE_FULL;
        return NULL;
    }
    d = &f->datagrams[i];
    ticket = d->ticket + 1;
    memset(d, 0, sizeof *d);
    d->ticket = ticket;
    d->id = *id;
    d->bucket = bucket;
    d->next = f->buckets[bucket];
    d->started_s = c->now_s;
    d->serial = c->serial;
    __atomic_store_n(&d->state, WAITING, __ATOMIC_RELAXED);
    f->buckets[bucket] = i;
    return d;
}

/* Nothing of it passes any more. */
static void condemn(struct moat_fragments *f, struct datagram *d)
{
    d->state = CONDEMNED;
    drop_held(f, d);
}

/* --- what has come --- */

static bool get(const uint64_t *bits, uint32_t unit)
{
    return bits[unit / 64] >> unit % 64 & 1;
}

/* The bits of word w that lie in [from, to). */
static uint64_t part(uint32_t w, uint32_t from, uint32_t to)
{
    uint64_t bits = UINT64_MAX;

    if (from > w * 64)
        bits &= UINT64_MAX << (from - w * 64);
    if (to < w * 64 + 64)
        bits &= UINT64_MAX >> (w * 64 + 64 - to);
    return bits;
}

static bool any(const uint64_t *bits, uint32_t from, uint32_t to)
{
    for (uint32_t w = from / 64; w * 64 < to; w++)
        if (bits[w] & part(w, from, to))
            return true;
    return false;
}

static bool all(const uint64_t *bits, uint32_t from, uint32_t to)
{
    for (uint32_t w = from / 64; w * 64 < to; w++)
        if (~bits[w] & part(w, from, to))
            return false;
    return true;
}

static void mark(struct datagram *d, const struct moat_pkt *p)
{
    uint32_t from = p->frag_at / 8, to = (p->frag_at + p->frag_len + 7) / 8;

    for (uint32_t w = from / 64; w * 64 < to; w++)
        d->came[w] |= part(w, from, to);
    d->starts[from / 64] |= UINT64_C(1) << from % 64;
    d->covered += p->frag_len;
    if (p->frag_at + p->frag_len > d->end)
        d->end = p->frag_at + p->frag_len;
    if (!p->frag_more)
        d->total = p->frag_at + p->frag_len;
}

/* One that came before had this very place.  Only whole fragments come, so its end is where
 * another one starts, or where nothing has come, or the end of all. */
static bool is_duplicate(const struct datagram *d, const struct moat_pkt *p)
{
    uint32_t from = p->frag_at / 8, end = p->frag_at + p->frag_len, to = (end + 7) / 8;

    if (!get(d->starts, from) || !all(d->came, from, to) || any(d->starts, from + 1, to))
        return false;
    if (!p->frag_more)
        return d->total == end;
    return d->total != end && (to == UNITS || !get(d->came, to) || get(d->starts, to));
}

/* MOAT_R_NONE: it fits what has come.  *alone: else it is refused, and the others are not. */
static enum moat_reason fits(const struct datagram *d, const struct moat_pkt *p, bool *alone)
{
    uint32_t end = p->frag_at + p->frag_len;

    *alone = false;
    if (any(d->came, p->frag_at / 8, (end + 7) / 8)) {
        *alone = is_duplicate(d, p);
        return MOAT_R_FRAG_OVERLAP;
    }
    if (p->frag_more ? d->total && end >= d->total : d->total || end < d->end)
        return MOAT_R_FRAG_SIZE;
    return MOAT_R_NONE;
}

/* Copies the frame of a fragment that came too early. */
static bool hold(struct moat_fragments *f, struct datagram *d, const struct moat_pkt *p)
{
    uint32_t i;

    if (p->len != p->total || p->len > MOAT_FRAGMENT_HELD_BYTES ||
        d->n_held == MOAT_FRAGMENT_HELD || !reserve(&f->held[d->id.slot], f->conf.n_held / 4))
        return false;
    i = take(f, f->free_frames, &f->n_free_frames);
    if (i == NONE) {
        __atomic_fetch_sub(&f->held[d->id.slot], 1, __ATOMIC_RELAXED);
        return false;
    }
    f->frames[i].len = p->len;
    f->frames[i].end = p->frag_at + p->frag_len;
    f->frames[i].last = !p->frag_more;
    memcpy(f->frames[i].bytes, p->data, p->len);
    d->held[d->n_held++] = i;
    return true;
}

static void end_if_complete(struct moat_fragments *f, struct datagram *d)
{
    if (d->state == ADMITTED && d->total && d->covered == d->total)
        forget(f, d);
}

static enum moat_fragment_say consider(struct moat_fragments *f, struct datagram *d,
                                       const struct moat_fragment_ctx *c, const struct moat_pkt *p,
                                       struct moat_fragment_session *session,
                                       enum moat_reason *reason)
{
    bool alone;

    *reason = MOAT_R_FRAG;
    if (d->serial != c->serial)
        condemn(f, d);
    if (d->state == CONDEMNED)
        return MOAT_FRAGMENT_REFUSE;
    *reason = fits(d, p, &alone);
    if (*reason) {
        if (!alone)
            condemn(f, d);
        return MOAT_FRAGMENT_REFUSE;
    }
    *reason = MOAT_R_FRAG;
    if (p->frag == 1) {
        mark(d, p);
        d->state = JUDGING;
        session->ticket = d->ticket;
        return MOAT_FRAGMENT_JUDGE;
    }
    if (d->state != ADMITTED) {
        if (!hold(f, d, p))
            return MOAT_FRAGMENT_REFUSE; /* it has not come, then */
        mark(d, p);
        return MOAT_FRAGMENT_HOLD;
    }
    mark(d, p);
    *session = d->session;
    end_if_complete(f, d);
    return MOAT_FRAGMENT_PASS;
}

enum moat_fragment_say moat_fragment_in(struct moat_fragments *f, const struct moat_fragment_ctx *c,
                                        const struct moat_pkt *p,
                                        struct moat_fragment_session *session,
                                        enum moat_reason *reason)
{
    enum moat_fragment_say say = MOAT_FRAGMENT_REFUSE;
    struct datagram *d;
    struct id id;
    uint32_t bucket;
    uint8_t *lock;

    id_of(c, p, &id);
    bucket = bucket_of(f, &id);
    lock = &f->stripes[bucket % STRIPES];
    moat_spin_lock(lock);
    d = find(f, bucket, &id, c->now_s);
    if (!d)
        d = begin(f, c, bucket, &id, reason);
    if (d)
        say = consider(f, d, c, p, session, reason);
    moat_spin_unlock(lock);
    return say;
}

unsigned moat_fragment_judged(struct moat_fragments *f, const struct moat_fragment_ctx *c,
                              const struct moat_pkt *p, const struct moat_fragment_session *session,
                              bool passed, moat_fragment_release_fn *release, void *aux)
{
    uint32_t frames[MOAT_FRAGMENT_HELD];
    unsigned n = 0;
    struct datagram *d;
    struct id id;
    uint32_t bucket;
    uint8_t *lock;

    id_of(c, p, &id);
    bucket = bucket_of(f, &id);
    lock = &f->stripes[bucket % STRIPES];
    moat_spin_lock(lock);
    d = find(f, bucket, &id, c->now_s);
    if (d && (d->state != JUDGING || d->ticket != session->ticket))
        d = NULL;
    if (d && !passed) {
        condemn(f, d);
    } else if (d) {
        n = d->n_held;
        memcpy(frames, d->held, sizeof frames);
        d->n_held = 0;
        d->session = *session;
        d->state = ADMITTED;
        end_if_complete(f, d);
    }
    moat_spin_unlock(lock);
    for (unsigned i = 0; i < n; i++) {
        const struct frame *held = &f->frames[frames[i]];

        release(aux, held->bytes, held->len, held->end, held->last);
        give_frame(f, c->slot, frames[i]);
    }
    return n;
}

/* --- housekeeping --- */

unsigned moat_fragments_age(struct moat_fragments *f, uint32_t now_s)
{
    uint32_t n = f->conf.n_datagrams / AGE_SLICES + 1;
    unsigned dropped = 0;

    while (n--) {
        struct datagram *d = &f->datagrams[f->age_next++ % f->conf.n_datagrams];
        uint32_t bucket;
        uint8_t *lock;

        if (__atomic_load_n(&d->state, __ATOMIC_RELAXED) == FREE)
            continue;
        bucket = __atomic_load_n(&d->bucket, __ATOMIC_RELAXED);
        lock = &f->stripes[bucket % STRIPES];
        moat_spin_lock(lock);
        /* It may have become another bucket's meanwhile: the next round, then. */
        if (d->state != FREE && d->bucket == bucket && is_dead(d, now_s)) {
            dropped += d->n_held;
            forget(f, d);
        }
        moat_spin_unlock(lock);
    }
    return dropped;
}

uint32_t moat_fragments_used(const struct moat_fragments *f, uint32_t slot)
{
    uint32_t sum = 0;

    if (slot != UINT32_MAX)
        return slot < f->conf.n_slots ? __atomic_load_n(&f->used[slot], __ATOMIC_RELAXED) : 0;
    for (slot = 0; slot < f->conf.n_slots; slot++)
        sum += __atomic_load_n(&f->used[slot], __ATOMIC_RELAXED);
    return sum;
}

uint32_t moat_fragments_held(const struct moat_fragments *f)
{
    uint32_t sum = 0;

    for (uint32_t slot = 0; slot < f->conf.n_slots; slot++)
        sum += __atomic_load_n(&f->held[slot], __ATOMIC_RELAXED);
    return sum;
}
