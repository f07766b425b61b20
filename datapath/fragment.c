/* SPDX-License-Identifier: Apache-2.0 */

/* A chained hash table of datagrams.  Entries and the buffers of held frames come from two pools
 * of fixed size; a slot's counts are raised by compare-and-swap, so a quota is never exceeded and
 * never refuses what it has room for.
 *
 *   bucket: lock, head ---> datagram ---> datagram      chain, by index
 *   datagram: name | what is known: ranges, starts, total | verdict | held frames
 *
 * What has come of a datagram is kept twice.  `ranges` are the disjoint pieces, touching ones
 * merged, in order: they say what overlaps and when it is complete.  `starts` has one bit for each
 * place of 8 bytes where a fragment began: within a piece the fragments lie end to end, so the
 * bits say where each one ended, and an exact duplicate is told from an overlap.
 *
 * Only what passed or is held is recorded.  A fragment that was refused never reaches the VM, so
 * it cannot overlap anything there; but what it says about the end condemns all the same.
 *
 * Synchronisation: an entry belongs to the lock of its bucket.  Pools have locks of their own,
 * taken inside.  A verdict finds its entry by a number that is never used twice. */

#include "fragment.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "spin.h"

#define NONE UINT32_MAX
#define STARTS (65536 / 8 / 64)
#define AGE_CALLS 20 /* a round of moat_fragments_age() */

enum state { WAITING = 1, JUDGING, ADMITTED, CONDEMNED };

/* What the fragments of one datagram have in common.  Compared and hashed as words. */
struct name {
    uint8_t src[16], dst[16];
    uint32_t slot, tag, id;
    uint16_t vlan;
    uint8_t dir, family;
    uint8_t proto; /* IPv4; in IPv6 only the first one's counts */
    uint8_t pad[7];
};

_Static_assert(sizeof(struct name) == 56, "no hidden padding");

struct range {
    uint16_t at, end;
};

struct datagram {
    struct name name;
    uint64_t number; /* of this datagram, never used twice */
    uint32_t next;   /* in the chain */
    uint32_t born;
    uint32_t serial; /* of the ruleset that the first one is judged by */
    uint8_t state;
    uint8_t n_ranges, n_held;
    bool has_key, is_tcp;
    uint16_t head;     /* of the first one: what counts before its bytes */
    uint16_t total;    /* 0: the last one has not come */
    uint16_t more_end; /* furthest end of those that are not the last */
    uint32_t first_len;
    uint32_t held[MOAT_FRAGMENT_HELD]; /* buffers */
    struct range ranges[MOAT_FRAGMENT_RANGES];
    struct moat_tcp_seg tcp; /* as the first one says it */
    struct moat_key key;
    uint64_t hash;
    uint64_t starts[STARTS];
};

struct held {
    uint32_t len;
    uint8_t bytes[MOAT_FRAGMENT_HELD_BYTES];
};

struct bucket {
    uint32_t head; /* stored under the lock, read without by ageing */
    uint8_t lock;
};

/* Indexes that are free. */
struct pool {
    uint32_t *free, size;
    uint32_t n_free; /* stored under the lock */
    uint8_t lock;
};

struct per_slot {
    uint32_t datagrams, held; /* atomic */
};

struct moat_fragments {
    struct datagram *datagrams;
    struct held *held;
    struct bucket *buckets;
    struct per_slot *slots;
    struct pool free_datagrams, free_held;
    uint32_t bucket_mask, n_slots, held_max;
    uint64_t seed[4];
    uint64_t next_number; /* atomic */
    uint32_t age_next;    /* control thread */
};

/* One fragment on its way through. */
struct arrival {
    struct moat_fragments *t;
    const struct moat_fragment_ctx *ctx;
    const struct moat_pkt *p;
    struct moat_fragment_answer *a;
    uint32_t bucket;
    uint32_t end;
};

/* --- pools and counts --- */

static bool pool_init(struct pool *p, uint32_t size)
{
    p->free = malloc(size * sizeof *p->free);
    if (!p->free)
        return false;
    for (uint32_t i = 0; i < size; i++)
        p->free[i] = size - 1 - i;
    p->size = p->n_free = size;
    return true;
}

static uint32_t pool_take(struct pool *p)
{
    uint32_t i = NONE;

    moat_spin_lock(&p->lock);
    if (p->n_free) {
        i = p->free[p->n_free - 1];
        __atomic_store_n(&p->n_free, p->n_free - 1, __ATOMIC_RELAXED);
    }
    moat_spin_unlock(&p->lock);
    return i;
}

static void pool_give(struct pool *p, uint32_t i)
{
    moat_spin_lock(&p->lock);
    p->free[p->n_free] = i;
    __atomic_store_n(&p->n_free, p->n_free + 1, __ATOMIC_RELAXED);
    moat_spin_unlock(&p->lock);
}

static uint32_t pool_used(const struct pool *p)
{
    return p->size - __atomic_load_n(&p->n_free, __ATOMIC_RELAXED);
}

static bool count_up(uint32_t *count, uint32_t limit)
{
    uint32_t n = __atomic_load_n(count, __ATOMIC_RELAXED);

    do {
        if (n >= limit)
            return false;
    } while (
        !__atomic_compare_exchange_n(count, &n, n + 1, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return true;
}

static void count_down(uint32_t *count)
{
    __atomic_fetch_sub(count, 1, __ATOMIC_RELAXED);
}

/* --- the table --- */

struct moat_fragments *moat_fragments_create(const struct moat_fragment_conf *conf)
{
    static const uint64_t spread[4] = {0x452821e638d01377, 0xbe5466cf34e90c6c, 0xc0ac29b7c97c50dd,
                                       0x3f84d5b5b5470917}; /* digits of pi */
    uint32_t n = conf->n_datagrams ? conf->n_datagrams : 4096;
    uint32_t n_held = conf->n_held ? conf->n_held : 256;
    struct moat_fragments *t;
    uint32_t n_buckets = 1;

    if (n > 1u << 24 || n_held > 1u << 20 || !conf->n_slots || conf->n_slots > 1u << 20) {
        errno = EINVAL;
        return NULL;
    }
    while (n_buckets < n)
        n_buckets *= 2;
    t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->datagrams = calloc(n, sizeof *t->datagrams);
    t->held = calloc(n_held, sizeof *t->held);
    t->buckets = calloc(n_buckets, sizeof *t->buckets);
    t->slots = calloc(conf->n_slots, sizeof *t->slots);
    if (!t->datagrams || !t->held || !t->buckets || !t->slots ||
        !pool_init(&t->free_datagrams, n) || !pool_init(&t->free_held, n_held)) {
        moat_fragments_destroy(t);
        errno = ENOMEM;
        return NULL;
    }
    for (uint32_t i = 0; i < n_buckets; i++)
        t->buckets[i].head = NONE;
    for (unsigned i = 0; i < 4; i++)
        t->seed[i] = (conf->seed[i % 2] ^ spread[i]) | 1;
    t->bucket_mask = n_buckets - 1;
    t->n_slots = conf->n_slots;
    t->held_max = n_held < 4 ? 1 : n_held / 4;
    return t;
}

void moat_fragments_destroy(struct moat_fragments *t)
{
    if (!t)
        return;
    free(t->datagrams);
    free(t->held);
    free(t->buckets);
    free(t->slots);
    free(t->free_datagrams.free);
    free(t->free_held.free);
    free(t);
}

uint32_t moat_fragments_used(const struct moat_fragments *t, uint32_t slot)
{
    if (slot == UINT32_MAX)
        return pool_used(&t->free_datagrams);
    return slot < t->n_slots ? __atomic_load_n(&t->slots[slot].datagrams, __ATOMIC_RELAXED) : 0;
}

uint32_t moat_fragments_held(const struct moat_fragments *t, uint32_t slot)
{
    if (slot == UINT32_MAX)
        return pool_used(&t->free_held);
    return slot < t->n_slots ? __atomic_load_n(&t->slots[slot].held, __ATOMIC_RELAXED) : 0;
}

/* Multiply and fold, as session.c does. */
static uint32_t name_of(const struct arrival *x, struct name *name)
{
    const struct moat_pkt *p = x->p;
    size_t len = p->family == MOAT_FAM_IP4 ? 4 : 16;
    uint64_t words[sizeof *name / 8], h = x->t->seed[0];

    memset(name, 0, sizeof *name);
    memcpy(name->src, p->src, len);
    memcpy(name->dst, p->dst, len);
    name->slot = x->ctx->slot;
    name->tag = x->ctx->tag;
    name->id = p->frag_id;
    name->vlan = p->vlan;
    name->dir = (uint8_t)x->ctx->dir;
    name->family = p->family;
    name->proto = p->family == MOAT_FAM_IP4 ? p->proto : 0;
    memcpy(words, name, sizeof words);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        __uint128_t r = (__uint128_t)(h ^ words[i]) * x->t->seed[i % 4];

        h = (uint64_t)r ^ (uint64_t)(r >> 64);
    }
    return (uint32_t)h & x->t->bucket_mask;
}

/* Packet threads tell the time by turns: a datagram may be younger than `now`. */
static bool is_dead(const struct datagram *d, uint32_t now_s)
{
    return (int32_t)(now_s - d->born) >= MOAT_FRAGMENT_S;
}

static void give_held(struct moat_fragments *t, uint32_t slot, const uint32_t *held, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        pool_give(&t->free_held, held[i]);
        count_down(&t->slots[slot].held);
    }
}

/* Drops what is held; says how many. */
static unsigned drop_held(struct moat_fragments *t, struct datagram *d)
{
    unsigned n = d->n_held;

    give_held(t, d->name.slot, d->held, n);
    d->n_held = 0;
    return n;
}

/* Takes datagram `index` out of the chain where `link` holds it, and gives it back.  Says how
 * many held ones were dropped. */
static unsigned forget_at(struct moat_fragments *t, uint32_t *link, uint32_t index)
{
    struct datagram *d = &t->datagrams[index];
    unsigned dropped = drop_held(t, d);
    uint32_t slot = d->name.slot;

    __atomic_store_n(link, d->next, __ATOMIC_RELAXED);
    pool_give(&t->free_datagrams, index); /* before the count: whoever may take one finds it */
    count_down(&t->slots[slot].datagrams);
    return dropped;
}

static void forget(struct moat_fragments *t, uint32_t bucket, struct datagram *d)
{
    uint32_t index = (uint32_t)(d - t->datagrams), *link = &t->buckets[bucket].head;

    while (*link != index)
        link = &t->datagrams[*link].next;
    forget_at(t, link, index);
}

/* The datagram of this name.  One that is dead makes room. */
static struct datagram *find(struct arrival *x, const struct name *name)
{
    uint32_t *link = &x->t->buckets[x->bucket].head;

    while (*link != NONE) {
        uint32_t index = *link;
        struct datagram *d = &x->t->datagrams[index];

        if (!memcmp(&d->name, name, sizeof *name)) {
            if (!is_dead(d, x->ctx->now_s))
                return d;
            x->a->dropped += forget_at(x->t, link, index);
            return NULL;
        }
        link = &d->next;
    }
    return NULL;
}

/* --- what is known of a datagram --- */

enum fit { FITS, DUPLICATE, OVERLAPS, IN_PIECES };

static bool starts_at(const struct datagram *d, uint32_t at)
{
    return at % 8 == 0 && (d->starts[at / 512] >> (at / 8 % 64) & 1);
}

/* Did one begin in [from, to)? */
static bool starts_within(const struct datagram *d, uint32_t from, uint32_t to)
{
    uint32_t place = from / 8, end = (to + 7) / 8;

    while (place < end) {
        uint64_t bits = d->starts[place / 64] >> (place % 64);

        if (bits)
            return place + (uint32_t)__builtin_ctzll(bits) < end;
        place = (place | 63) + 1;
    }
    return false;
}

/* Is [at, end), which meets the piece r, just what one fragment brought? */
static bool is_duplicate(const struct datagram *d, const struct range *r, uint32_t at, uint32_t end)
{
    return at >= r->at && end <= r->end && starts_at(d, at) && !starts_within(d, at + 8, end) &&
           (end == r->end || starts_at(d, end));
}

/* First piece that ends behind `at`. */
static unsigned piece_behind(const struct datagram *d, uint32_t at)
{
    unsigned i = 0;

    while (i < d->n_ranges && d->ranges[i].end <= at)
        i++;
    return i;
}

static bool joins_left(const struct datagram *d, unsigned i, uint32_t at)
{
    return i && d->ranges[i - 1].end == at;
}

static bool joins_right(const struct datagram *d, unsigned i, uint32_t end)
{
    return i < d->n_ranges && d->ranges[i].at == end;
}

static enum fit fits(const struct datagram *d, uint32_t at, uint32_t end)
{
    unsigned i = piece_behind(d, at);

    if (i < d->n_ranges && d->ranges[i].at < end)
        return is_duplicate(d, &d->ranges[i], at, end) ? DUPLICATE : OVERLAPS;
    if (d->n_ranges == MOAT_FRAGMENT_RANGES && !joins_left(d, i, at) && !joins_right(d, i, end))
        return IN_PIECES;
    return FITS;
}

static void add_range(struct datagram *d, uint32_t at, uint32_t end)
{
    unsigned i = piece_behind(d, at);
    bool left = joins_left(d, i, at), right = joins_right(d, i, end);
    struct range *r = &d->ranges[i];

    if (left && right) {
        r[-1].end = r->end;
        d->n_ranges--;
        memmove(r, r + 1, (d->n_ranges - i) * sizeof *r);
    } else if (left) {
        r[-1].end = (uint16_t)end;
    } else if (right) {
        r->at = (uint16_t)at;
    } else {
        memmove(r + 1, r, (d->n_ranges - i) * sizeof *r);
        d->n_ranges++;
        *r = (struct range){(uint16_t)at, (uint16_t)end};
    }
}

static uint32_t furthest(const struct datagram *d)
{
    return d->total > d->more_end ? d->total : d->more_end;
}

/* Does the fragment contradict what is known about the datagram's length? */
static bool end_contradicts(const struct datagram *d, const struct moat_pkt *p, uint32_t end)
{
    uint32_t head = p->frag_at ? d->head : p->frag_head;

    if (head + end > 65535 || head + furthest(d) > 65535)
        return true;
    if (p->frag_more)
        return d->total && end >= d->total;
    return (d->total && d->total != end) || d->more_end >= end;
}

/* It passes or is held. */
static void record(struct datagram *d, const struct moat_pkt *p, uint32_t end)
{
    uint32_t at = p->frag_at;

    add_range(d, at, end);
    d->starts[at / 512] |= 1ull << (at / 8 % 64);
    if (!p->frag_more)
        d->total = (uint16_t)end;
    else if (end > d->more_end)
        d->more_end = (uint16_t)end;
}

static bool is_complete(const struct datagram *d)
{
    return d->total && d->n_ranges == 1 && !d->ranges[0].at && d->ranges[0].end == d->total;
}

/* --- what is said of a fragment --- */

static enum moat_fragment_say refuse(const struct arrival *x, enum moat_reason reason)
{
    x->a->reason = reason;
    return MOAT_FRAGMENT_REFUSE;
}

static enum moat_fragment_say condemn(const struct arrival *x, struct datagram *d,
                                      enum moat_reason reason)
{
    x->a->dropped += drop_held(x->t, d);
    d->state = CONDEMNED;
    return refuse(x, reason);
}

/* Copies the frame into a buffer of the datagram. */
static bool hold(const struct arrival *x, struct datagram *d)
{
    uint32_t *count = &x->t->slots[x->ctx->slot].held, i;

    if (d->n_held == MOAT_FRAGMENT_HELD || !count_up(count, x->t->held_max))
        return false;
    i = pool_take(&x->t->free_held);
    if (i == NONE) {
        count_down(count);
        return false;
    }
    memcpy(x->t->held[i].bytes, x->p->data, x->p->len);
    x->t->held[i].len = x->p->len;
    d->held[d->n_held++] = i;
    return true;
}

static bool can_be_held(const struct moat_pkt *p)
{
    return p->len == p->total && p->len <= MOAT_FRAGMENT_HELD_BYTES;
}

static void answer(const struct arrival *x, const struct datagram *d)
{
    x->a->datagram = d->number;
    x->a->bucket = x->bucket;
    if (!d->is_tcp)
        return;
    x->a->tcp = d->tcp;
    x->a->tcp.len += furthest(d) - d->first_len;
    if (!d->total)
        x->a->tcp.flags &= (uint8_t)~MOAT_TCP_FIN;
}

/* The first one, of a datagram that nothing has been said about. */
static enum moat_fragment_say judge(const struct arrival *x, struct datagram *d)
{
    d->state = JUDGING;
    d->serial = x->ctx->serial;
    d->head = x->p->frag_head;
    d->first_len = x->p->frag_len;
    d->is_tcp = x->p->kind == MOAT_PKT_TCP;
    d->tcp = x->p->tcp;
    record(d, x->p, x->end);
    answer(x, d);
    return MOAT_FRAGMENT_JUDGE;
}

static enum moat_fragment_say pass(const struct arrival *x, struct datagram *d)
{
    record(d, x->p, x->end);
    answer(x, d);
    x->a->has_key = d->has_key;
    x->a->key = d->key;
    x->a->hash = d->hash;
    if (is_complete(d))
        forget(x->t, x->bucket, d);
    return MOAT_FRAGMENT_PASS;
}

/* Another one of a datagram that is under way. */
static enum moat_fragment_say go_on(const struct arrival *x, struct datagram *d)
{
    if (d->state == CONDEMNED)
        return refuse(x, MOAT_R_FRAG);
    if (d->state != WAITING && (int32_t)(x->ctx->serial - d->serial) > 0)
        return condemn(x, d, MOAT_R_POLICY_CHANGE);
    if (end_contradicts(d, x->p, x->end))
        return condemn(x, d, MOAT_R_FRAG_SIZE);
    switch (fits(d, x->p->frag_at, x->end)) {
    case DUPLICATE:
        return refuse(x, MOAT_R_FRAG_OVERLAP);
    case OVERLAPS:
        return condemn(x, d, MOAT_R_FRAG_OVERLAP);
    case IN_PIECES:
        return condemn(x, d, MOAT_R_FRAG);
    case FITS:
        break;
    }
    if (!x->p->frag_at)
        return judge(x, d);
    if (d->state == ADMITTED)
        return pass(x, d);
    if (!can_be_held(x->p) || !hold(x, d))
        return refuse(x, MOAT_R_FRAG);
    record(d, x->p, x->end);
    return MOAT_FRAGMENT_HOLD;
}

/* Puts a new datagram in place.  NULL: there is no room, *reason says why. */
static struct datagram *new_datagram(const struct arrival *x, const struct name *name,
                                     enum moat_reason *reason)
{
    uint32_t *count = &x->t->slots[name->slot].datagrams, index;
    struct bucket *b = &x->t->buckets[x->bucket];
    struct datagram *d;

    *reason = MOAT_R_FRAG_QUOTA;
    if (!count_up(count, x->ctx->limit))
        return NULL;
    *reason = MOAT_R_TABLE_FULL;
    index = pool_take(&x->t->free_datagrams);
    if (index == NONE) {
        count_down(count);
        return NULL;
    }
    d = &x->t->datagrams[index];
    memset(d, 0, sizeof *d);
    d->name = *name;
    d->number = __atomic_add_fetch(&x->t->next_number, 1, __ATOMIC_RELAXED);
    d->born = x->ctx->now_s;
    d->state = WAITING;
    d->next = b->head;
    __atomic_store_n(&b->head, index, __ATOMIC_RELAXED);
    return d;
}

static enum moat_fragment_say begin(const struct arrival *x, const struct name *name)
{
    bool first = !x->p->frag_at;
    enum moat_reason reason;
    struct datagram *d;

    if (!first && !can_be_held(x->p))
        return refuse(x, MOAT_R_FRAG);
    d = new_datagram(x, name, &reason);
    if (!d)
        return refuse(x, reason);
    if (first)
        return judge(x, d);
    if (!hold(x, d)) {
        forget(x->t, x->bucket, d);
        return refuse(x, MOAT_R_FRAG);
    }
    record(d, x->p, x->end);
    return MOAT_FRAGMENT_HOLD;
}

/* What moat_parse() promises of a fragment.  The ranges rely on it. */
static bool is_sound(const struct arrival *x)
{
    const struct moat_pkt *p = x->p;

    return x->ctx->slot < x->t->n_slots && p->frag && p->frag_len && p->frag_len <= 65535 &&
           p->frag_at % 8 == 0 && p->frag_head + x->end <= 65535 &&
           (p->frag_more ? p->frag_len % 8 == 0 : p->frag_at != 0);
}

enum moat_fragment_say moat_fragment_in(struct moat_fragments *t,
                                        const struct moat_fragment_ctx *ctx,
                                        const struct moat_pkt *p, struct moat_fragment_answer *a)
{
    struct arrival x = {.t = t, .ctx = ctx, .p = p, .a = a, .end = p->frag_at + p->frag_len};
    enum moat_fragment_say say;
    struct datagram *d;
    struct name name;

    memset(a, 0, sizeof *a);
    if (!is_sound(&x))
        return refuse(&x, MOAT_R_INTERNAL);
    x.bucket = name_of(&x, &name);
    moat_spin_lock(&t->buckets[x.bucket].lock);
    d = find(&x, &name);
    say = d ? go_on(&x, d) : begin(&x, &name);
    moat_spin_unlock(&t->buckets[x.bucket].lock);
    return say;
}

/* --- the verdict --- */

static struct datagram *find_number(struct moat_fragments *t, uint32_t bucket, uint64_t number)
{
    for (uint32_t i = t->buckets[bucket].head; i != NONE; i = t->datagrams[i].next)
        if (t->datagrams[i].number == number)
            return &t->datagrams[i];
    return NULL;
}

unsigned moat_fragment_judged(struct moat_fragments *t, const struct moat_fragment_answer *a,
                              bool passed, const struct moat_key *key, uint64_t hash,
                              moat_fragment_release_fn *release, void *aux)
{
    uint32_t bucket = a->bucket & t->bucket_mask, held[MOAT_FRAGMENT_HELD], slot = 0;
    unsigned n = 0, dropped = 0;
    struct datagram *d;

    moat_spin_lock(&t->buckets[bucket].lock);
    d = find_number(t, bucket, a->datagram);
    if (d && !passed) {
        dropped = drop_held(t, d);
        d->state = CONDEMNED;
    } else if (d && d->state == JUDGING) {
        d->state = ADMITTED;
        d->has_key = key;
        if (key)
            d->key = *key;
        d->hash = hash;
        slot = d->name.slot;
        n = d->n_held;
        memcpy(held, d->held, sizeof held);
        d->n_held = 0; /* they are ours now */
        if (is_complete(d))
            forget(t, bucket, d);
    }
    moat_spin_unlock(&t->buckets[bucket].lock);
    for (unsigned i = 0; i < n; i++)
        release(aux, t->held[held[i]].bytes, t->held[held[i]].len);
    give_held(t, slot, held, n);
    return n + dropped;
}

/* --- housekeeping --- */

static unsigned age_bucket(struct moat_fragments *t, struct bucket *b, uint32_t now_s)
{
    uint32_t *link = &b->head;
    unsigned dropped = 0;

    moat_spin_lock(&b->lock);
    while (*link != NONE) {
        struct datagram *d = &t->datagrams[*link];

        if (is_dead(d, now_s))
            dropped += forget_at(t, link, *link);
        else
            link = &d->next;
    }
    moat_spin_unlock(&b->lock);
    return dropped;
}

unsigned moat_fragments_age(struct moat_fragments *t, uint32_t now_s)
{
    uint32_t n_buckets = t->bucket_mask + 1;
    unsigned dropped = 0;

    for (uint32_t n = n_buckets / AGE_CALLS + 1; n; n--) {
        struct bucket *b = &t->buckets[t->age_next++ & t->bucket_mask];

        if (__atomic_load_n(&b->head, __ATOMIC_RELAXED) != NONE)
            dropped += age_bucket(t, b, now_s);
    }
    return dropped;
}
