/* SPDX-License-Identifier: Apache-2.0 */

/* The table of fragments against a slow twin.
 *
 * The twin is a plain array of datagrams, each with a byte for every byte that came and a list of
 * the fragments that brought them; it shares nothing with the table but the header.  Random
 * fragments come from senders that cut datagrams up in order and out of it, lose, repeat,
 * overlap, prolong and cut them, many at once under few identifications.
 *
 * What a receiver would put together is kept apart from both: of every datagram, by the number that
 * the table gave it, no byte is let through twice, and none without an admitted first fragment. */

#include "datapath/fragment.h"
#include "tests/lib/trials.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

/* ck_assert() writes to a pipe each time: too slow for a million of them. */
#define MUST(C)                                                                                    \
    do {                                                                                           \
        if (!(C))                                                                                  \
            ck_abort_msg("%s", #C);                                                                \
    } while (0)

#define N_RANDOM TRIALS(1500000)

#define N_SLOTS 3
#define N_DATAGRAMS 24
#define N_HELD 16
#define LIMIT 10

static uint64_t rng;

static uint32_t any(uint32_t n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng >> 33) % n;
}

/* --- fragments, and whose they are --- */

struct whose {
    uint32_t slot, id;
    uint8_t dir, family, proto;
    uint16_t vlan;
};

struct piece {
    uint32_t at, len, head, number;
    bool more, tcp;
    uint32_t frame_len, frame_total;
};

static const uint8_t address[2][16] = {{10, 0, 0, 1, 5}, {10, 0, 0, 2, 6}};
static uint8_t bytes[MOAT_FRAGMENT_HELD_BYTES + 64];

static void make(struct moat_pkt *p, const struct whose *w, const struct piece *c)
{
    memset(p, 0, sizeof *p);
    memcpy(bytes, &c->number, 4);
    p->data = bytes;
    p->len = c->frame_len;
    p->total = c->frame_total;
    p->family = w->family;
    p->proto = w->proto;
    p->vlan = w->vlan;
    p->kind = c->at ? MOAT_PKT_IP_OTHER : c->tcp ? MOAT_PKT_TCP : MOAT_PKT_UDP;
    p->frag = c->at ? 2 : 1;
    p->frag_more = c->more;
    p->frag_id = w->id;
    p->frag_at = (uint16_t)c->at;
    p->frag_len = c->len;
    p->frag_head = (uint16_t)c->head;
    p->src = address[0];
    p->dst = address[1];
    if (p->kind == MOAT_PKT_TCP)
        p->tcp = (struct moat_tcp_seg){.seq = c->number,
                                       .len = c->len - (c->len > 20 ? 20 : c->len),
                                       .flags = MOAT_TCP_FIN | MOAT_TCP_ACK};
}

/* --- the twin --- */

enum { T_FREE, T_WAITING, T_JUDGING, T_ADMITTED, T_CONDEMNED };

#define MAX_CAME 600

struct twin {
    int state;
    struct whose whose;
    uint32_t born, serial;
    uint64_t number; /* the table's; known from JUDGE on */
    uint32_t n_came, n_held;
    struct piece came[MAX_CAME];
    struct piece held[MOAT_FRAGMENT_HELD];
    struct piece first;
    uint64_t hash;
    uint8_t byte[65536];
};

static struct twin twins[N_DATAGRAMS];

struct said {
    enum moat_fragment_say say;
    enum moat_reason reason;
    unsigned dropped;
    struct twin *twin; /* JUDGE, PASS */
    uint64_t hash;
    uint32_t tcp_len;
    bool tcp_fin;
};

static unsigned count_twins(uint32_t slot, bool held)
{
    unsigned n = 0;

    for (unsigned i = 0; i < N_DATAGRAMS; i++)
        if (twins[i].state && (slot == UINT32_MAX || twins[i].whose.slot == slot))
            n += held ? twins[i].n_held : 1;
    return n;
}

static bool same(const struct whose *a, const struct whose *b)
{
    return a->slot == b->slot && a->id == b->id && a->dir == b->dir && a->family == b->family &&
           a->vlan == b->vlan && (a->family == 6 || a->proto == b->proto);
}

static struct twin *twin_of(const struct whose *w)
{
    for (unsigned i = 0; i < N_DATAGRAMS; i++)
        if (twins[i].state && same(&twins[i].whose, w))
            return &twins[i];
    return NULL;
}

static uint32_t twin_end(const struct twin *t, bool of_last)
{
    uint32_t end = 0;

    for (uint32_t i = 0; i < t->n_came; i++)
        if (t->came[i].more == !of_last && t->came[i].at + t->came[i].len > end)
            end = t->came[i].at + t->came[i].len;
    return end;
}

static uint32_t twin_reach(const struct twin *t)
{
    uint32_t a = twin_end(t, false), b = twin_end(t, true);

    return a > b ? a : b;
}

static unsigned twin_pieces(const struct twin *t)
{
    unsigned n = 0;

    for (uint32_t i = 0, end = twin_reach(t); i < end; i++)
        n += t->byte[i] && !(i && t->byte[i - 1]);
    return n;
}

static void twin_add(struct twin *t, const struct piece *c)
{
    MUST(t->n_came < MAX_CAME);
    t->came[t->n_came++] = *c;
    memset(t->byte + c->at, 1, c->len);
}

static void twin_free(struct twin *t)
{
    memset(t->byte, 0, twin_reach(t));
    t->state = T_FREE;
}

/* What is wrong with one more fragment; *alone: it alone is refused. */
static enum moat_reason twin_wrong(struct twin *t, const struct piece *c, bool *alone)
{
    uint32_t end = c->at + c->len, total = twin_end(t, true), more_end = twin_end(t, false);
    uint32_t head = c->at ? t->first.head : c->head;
    uint32_t reach = end > twin_reach(t) ? end : twin_reach(t);
    bool twice = false;
    unsigned n;

    *alone = false;
    if (head + reach > 65535)
        return MOAT_R_FRAG_SIZE;
    if (c->more ? total && end >= total : (total && total != end) || more_end >= end)
        return MOAT_R_FRAG_SIZE;
    for (uint32_t i = c->at; i < end; i++)
        twice |= t->byte[i];
    for (uint32_t i = 0; i < t->n_came; i++)
        *alone |= t->came[i].at == c->at && t->came[i].len == c->len;
    if (twice)
        return MOAT_R_FRAG_OVERLAP;
    twin_add(t, c);
    n = twin_pieces(t);
    t->n_came--;
    memset(t->byte + c->at, 0, c->len);
    return n > MOAT_FRAGMENT_RANGES ? MOAT_R_FRAG : MOAT_R_NONE;
}

static void twin_tcp(const struct twin *t, struct said *s)
{
    s->twin = (struct twin *)t;
    if (!t->first.tcp)
        return;
    s->tcp_len =
        t->first.len - (t->first.len > 20 ? 20 : t->first.len) + twin_reach(t) - t->first.len;
    s->tcp_fin = twin_end(t, true);
}

static struct said twin_begin(const struct moat_fragment_ctx *c, const struct whose *w,
                              const struct piece *p, struct said s)
{
    struct twin *t = twins;

    s.reason = MOAT_R_FRAG;
    if (p->at && (p->frame_len != p->frame_total || p->frame_len > MOAT_FRAGMENT_HELD_BYTES))
        return s;
    s.reason = MOAT_R_FRAG_QUOTA;
    if (count_twins(w->slot, false) >= c->limit)
        return s;
    s.reason = MOAT_R_TABLE_FULL;
    while (t < twins + N_DATAGRAMS && t->state)
        t++;
    if (t == twins + N_DATAGRAMS)
        return s;
    s.reason = MOAT_R_FRAG;
    if (p->at && count_twins(w->slot, true) >= N_HELD / 4)
        return s;
    t->state = p->at ? T_WAITING : T_JUDGING;
    t->whose = *w;
    t->born = c->now_s;
    t->serial = c->serial;
    t->n_came = t->n_held = 0;
    t->number = 0;
    t->first = (struct piece){0};
    twin_add(t, p);
    s.reason = MOAT_R_NONE;
    if (p->at) {
        t->held[t->n_held++] = *p;
        s.say = MOAT_FRAGMENT_HOLD;
    } else {
        t->first = *p;
        s.say = MOAT_FRAGMENT_JUDGE;
        twin_tcp(t, &s);
    }
    return s;
}

static struct said twin_go_on(struct twin *t, const struct moat_fragment_ctx *c,
                              const struct piece *p, struct said s)
{
    bool alone = false;

    s.reason = MOAT_R_FRAG;
    if (t->state == T_CONDEMNED)
        return s;
    s.reason = t->state != T_WAITING && c->serial > t->serial ? MOAT_R_POLICY_CHANGE
                                                              : twin_wrong(t, p, &alone);
    if (s.reason) {
        if (s.reason != MOAT_R_FRAG_OVERLAP || !alone) {
            s.dropped = t->n_held;
            t->n_held = 0;
            t->state = T_CONDEMNED;
        }
        return s;
    }
    if (!p->at) {
        t->state = T_JUDGING;
        t->serial = c->serial;
        t->first = *p;
        s.say = MOAT_FRAGMENT_JUDGE;
    } else if (t->state == T_ADMITTED) {
        s.say = MOAT_FRAGMENT_PASS;
        s.hash = t->hash;
    } else if (p->frame_len == p->frame_total && p->frame_len <= MOAT_FRAGMENT_HELD_BYTES &&
               t->n_held < MOAT_FRAGMENT_HELD && count_twins(t->whose.slot, true) < N_HELD / 4) {
        s.say = MOAT_FRAGMENT_HOLD;
        t->held[t->n_held++] = *p;
    } else {
        s.reason = MOAT_R_FRAG;
        return s;
    }
    twin_add(t, p);
    if (s.say != MOAT_FRAGMENT_HOLD)
        twin_tcp(t, &s);
    return s;
}

static bool twin_complete(const struct twin *t)
{
    uint32_t total = twin_end(t, true);

    return total && !memchr(t->byte, 0, total);
}

static struct said twin_in(const struct moat_fragment_ctx *c, const struct whose *w,
                           const struct piece *p)
{
    struct said s = {.say = MOAT_FRAGMENT_REFUSE};
    struct twin *t = twin_of(w);

    if (t && (int32_t)(c->now_s - t->born) >= MOAT_FRAGMENT_S) {
        s.dropped = t->n_held;
        twin_free(t);
        t = NULL;
    }
    return t ? twin_go_on(t, c, p, s) : twin_begin(c, w, p, s);
}

/* --- what a receiver gets --- */

#define N_LOG 4096 /* datagrams; their numbers are this dense */

struct receiver {
    uint64_t number;
    bool first;
    uint32_t n;
    struct {
        uint16_t at, end;
    } got[MAX_CAME];
};

static struct receiver receivers[N_LOG];

/* Nothing is let through twice, and the first one, if it comes later than held ones, comes. */
static void receive(uint64_t number, uint32_t at, uint32_t len)
{
    struct receiver *r = &receivers[number % N_LOG];

    if (r->number != number)
        *r = (struct receiver){.number = number};
    MUST(r->first || !at);
    r->first = true;
    for (uint32_t i = 0; i < r->n; i++)
        MUST(at >= r->got[i].end || at + len <= r->got[i].at);
    MUST(r->n < MAX_CAME);
    r->got[r->n].at = (uint16_t)at;
    r->got[r->n++].end = (uint16_t)(at + len);
}

/* --- senders --- */

#define N_SENDERS 24
#define MAX_PLAN 44

struct sender {
    struct whose whose;
    uint32_t n, next;
    struct piece plan[MAX_PLAN];
};

static uint32_t last_number;

static void plan_one(struct sender *s, uint32_t at, uint32_t len, bool more)
{
    struct piece *c = &s->plan[s->n++];

    *c = (struct piece){
        .at = at, .len = len, .more = more, .head = any(10) ? 20 : 60, .tcp = s->whose.proto == 6};
    c->frame_len = c->frame_total = 60 + any(100);
    if (!any(20))
        c->frame_total++;
    else if (!any(20))
        c->frame_len = c->frame_total = MOAT_FRAGMENT_HELD_BYTES + any(3) - 1;
    if (c->at + c->len + c->head > 65535) {
        c->head = 20;
        c->len = c->len > 16 ? c->len - 16 : c->len;
    }
    if (c->at + c->len + c->head > 65535)
        s->n--;
}

/* A datagram, cut up; from a place far behind sometimes. */
static void plan_pieces(struct sender *s)
{
    uint32_t n = 1 + any(any(4) ? 5 : 36), at = 0;

    for (uint32_t i = 0; i <= n && at < 65000; i++) {
        uint32_t len = 8 * (1 + any(4));

        if (!i)
            len += 16;
        if (i == 1 && !any(100))
            len = 8 * (8160 + any(30));
        if (i == n && any(10))
            len -= any(8);
        plan_one(s, at, len, i != n);
        at += len;
    }
}

/* One piece in the plan becomes wrong. */
static void plan_fault(struct sender *s)
{
    struct piece *c = &s->plan[any(s->n)];
    bool room = c->at + c->len + c->head + 16 <= 65535;

    switch (any(8)) {
    case 0: /* overlaps what is before it */
        if (c->at >= 8) {
            c->at -= 8;
            if (any(2))
                c->len += 8;
        }
        break;
    case 1: /* is longer */
        if (room)
            c->len += c->more ? 8 : 1 + any(10);
        break;
    case 2: /* is shorter */
        if (c->len > 8)
            c->len -= 8;
        break;
    case 3: /* says that it is the last one, or not */
        if (c->at && c->len % 8 == 0)
            c->more = !c->more;
        break;
    case 4: /* is lost */
        *c = s->plan[--s->n];
        break;
    case 5: /* comes twice */
    case 6:
        if (s->n < MAX_PLAN)
            s->plan[s->n++] = *c;
        break;
    default: /* is elsewhere */
        if (room && c->at)
            c->at += 8;
    }
}

static void shuffle(struct sender *s)
{
    for (uint32_t i = s->n; i > 1; i--) {
        uint32_t j = any(i);
        struct piece c = s->plan[j];

        s->plan[j] = s->plan[i - 1];
        s->plan[i - 1] = c;
    }
}

/* But for the first one. */
static void reverse(struct sender *s)
{
    for (uint32_t i = 1, j = s->n - 1; i < j && s->n; i++, j--) {
        struct piece c = s->plan[i];

        s->plan[i] = s->plan[j];
        s->plan[j] = c;
    }
}

static void every_second_first(struct sender *s)
{
    struct piece plan[MAX_PLAN];
    uint32_t n = 0;

    for (uint32_t odd = 0; odd < 2; odd++)
        for (uint32_t i = odd; i < s->n; i += 2)
            plan[n++] = s->plan[i];
    memcpy(s->plan, plan, n * sizeof *plan);
}

static void plan(struct sender *s)
{
    s->whose = (struct whose){.slot = any(N_SLOTS),
                              .id = any(5),
                              .dir = (uint8_t)any(2),
                              .family = any(3) ? MOAT_FAM_IP4 : MOAT_FAM_IP6,
                              .proto = any(2) ? 6 : 17,
                              .vlan = (uint16_t)(any(8) ? 0 : 3)};
    s->n = s->next = 0;
    plan_pieces(s);
    while (s->n && !any(4))
        plan_fault(s);
    switch (any(6)) {
    case 0:
        shuffle(s);
        break;
    case 1:
        reverse(s);
        break;
    case 2:
        every_second_first(s);
    }
    for (uint32_t i = 0; i < s->n; i++)
        s->plan[i].number = ++last_number;
}

/* --- both at once --- */

struct pending {
    struct moat_fragment_answer a;
    struct twin *twin;
    uint64_t number;
    struct piece first;
};

struct both {
    struct moat_fragments *table;
    struct moat_fragment_ctx ctx;
    struct pending pending[6];
    uint32_t n_pending;
    unsigned said[4], reasons[MOAT_N_REASONS], released, complete, dropped;
    /* of one judged(): */
    const struct twin *from;
    uint32_t n_from;
};

static void released(void *aux, const uint8_t *frame, uint32_t len)
{
    struct both *b = aux;
    const struct piece *c = &b->from->held[b->n_from++];

    MUST(len == c->frame_len);
    MUST(!memcmp(frame, &c->number, 4));
    b->released++;
}

/* A pending verdict is given.  Its datagram may be another one by now. */
static void judge_one(struct both *b, uint32_t i)
{
    struct pending p = b->pending[i];
    struct twin *t = p.twin;
    bool live = t->state && t->number == p.number, passed = any(8) != 0, key = any(3) != 0;
    struct moat_key k = {.tag = last_number, .proto = 6};
    unsigned want = 0, n;
    bool admits = live && t->state == T_JUDGING && passed;

    b->pending[i] = b->pending[--b->n_pending];
    if (live && (admits || !passed))
        want = t->n_held;
    b->from = t;
    b->n_from = 0;
    n = moat_fragment_judged(b->table, &p.a, passed, key ? &k : NULL, p.number, released, b);
    MUST(n == want);
    MUST(b->n_from == (admits ? want : 0));
    if (passed)
        receive(p.number, p.first.at, p.first.len);
    if (admits) {
        for (uint32_t j = 0; j < t->n_held; j++)
            receive(p.number, t->held[j].at, t->held[j].len);
        t->state = T_ADMITTED;
        t->hash = p.number;
        t->n_held = 0;
        if (twin_complete(t)) {
            twin_free(t);
            b->complete++;
        }
    } else if (live && !passed) {
        t->n_held = 0;
        t->state = T_CONDEMNED;
    }
}

static void compare(const struct moat_fragment_answer *a, enum moat_fragment_say say,
                    const struct said *want)
{
    if (say != want->say || a->reason != want->reason)
        ck_abort_msg("said %d (%s), not %d (%s)", say, moat_reason_name(a->reason), want->say,
                     moat_reason_name(want->reason));
    MUST(a->dropped == want->dropped);
    MUST(a->hash == want->hash);
    MUST(a->tcp.len == want->tcp_len);
    MUST(!!(a->tcp.flags & MOAT_TCP_FIN) == want->tcp_fin);
}

static void send_one(struct both *b, const struct whose *w, const struct piece *c)
{
    struct moat_fragment_answer a;
    enum moat_fragment_say say;
    struct moat_pkt p;
    struct said want;

    b->ctx.slot = w->slot;
    b->ctx.tag = w->slot + 1;
    b->ctx.dir = (enum moat_dir)w->dir;
    make(&p, w, c);
    want = twin_in(&b->ctx, w, c);
    say = moat_fragment_in(b->table, &b->ctx, &p, &a);
    compare(&a, say, &want);
    b->said[say]++;
    b->reasons[a.reason]++;
    b->dropped += a.dropped;
    if (say == MOAT_FRAGMENT_JUDGE) {
        want.twin->number = a.datagram;
        if (b->n_pending == 6)
            judge_one(b, any(6));
        b->pending[b->n_pending++] =
            (struct pending){.a = a, .twin = want.twin, .number = a.datagram, .first = *c};
        if (any(4))
            judge_one(b, b->n_pending - 1);
    } else if (say == MOAT_FRAGMENT_PASS) {
        MUST(a.datagram == want.twin->number);
        receive(a.datagram, c->at, c->len);
        if (twin_complete(want.twin)) {
            twin_free(want.twin);
            b->complete++;
        }
    }
}

/* A whole round of ageing: then the twin knows which ones are gone. */
static void age(struct both *b)
{
    unsigned dropped = 0, want = 0;

    for (int i = 0; i < 20; i++)
        dropped += moat_fragments_age(b->table, b->ctx.now_s);
    for (struct twin *t = twins; t < twins + N_DATAGRAMS; t++) {
        if (t->state && (int32_t)(b->ctx.now_s - t->born) >= MOAT_FRAGMENT_S) {
            want += t->n_held;
            twin_free(t);
        }
    }
    MUST(dropped == want);
    b->dropped += dropped;
}

static void compare_counts(const struct both *b)
{
    for (uint32_t slot = 0; slot < N_SLOTS; slot++) {
        MUST(moat_fragments_used(b->table, slot) == count_twins(slot, false));
        MUST(moat_fragments_held(b->table, slot) == count_twins(slot, true));
        MUST(moat_fragments_used(b->table, slot) <= LIMIT);
        MUST(moat_fragments_held(b->table, slot) <= N_HELD / 4);
    }
    MUST(moat_fragments_used(b->table, UINT32_MAX) == count_twins(UINT32_MAX, false));
    MUST(moat_fragments_held(b->table, UINT32_MAX) == count_twins(UINT32_MAX, true));
}

static void check_variety(const struct both *b)
{
    static const enum moat_reason met[] = {MOAT_R_FRAG,       MOAT_R_FRAG_OVERLAP,
                                           MOAT_R_FRAG_SIZE,  MOAT_R_FRAG_QUOTA,
                                           MOAT_R_TABLE_FULL, MOAT_R_POLICY_CHANGE};

    for (int i = 0; i < 4; i++)
        ck_assert_uint_gt(b->said[i], N_RANDOM / 100);
    for (size_t i = 0; i < sizeof met / sizeof *met; i++)
        ck_assert_msg(b->reasons[met[i]] > N_RANDOM / 1000, "%s: %u", moat_reason_name(met[i]),
                      b->reasons[met[i]]);
    ck_assert_uint_gt(b->released, N_RANDOM / 1000);
    ck_assert_uint_gt(b->complete, N_RANDOM / 100);
    ck_assert_uint_gt(b->dropped, N_RANDOM / 1000);
}

START_TEST(agrees_with_a_plain_list)
{
    static struct sender senders[N_SENDERS];
    static struct both b;

    rng = 42;
    b.ctx.serial = 1;
    b.ctx.limit = LIMIT;
    b.table = moat_fragments_create(&(struct moat_fragment_conf){
        .n_slots = N_SLOTS, .n_datagrams = N_DATAGRAMS, .n_held = N_HELD, .seed = {3, 4}});
    ck_assert_ptr_nonnull(b.table);
    for (unsigned i = 0; i < N_RANDOM;) {
        struct sender *s = &senders[any(N_SENDERS)];

        if (s->next == s->n) {
            plan(s);
            continue;
        }
        send_one(&b, &s->whose, &s->plan[s->next++]);
        i++;
        if (!any(30))
            b.ctx.now_s += any(12);
        if (!any(100))
            age(&b);
        if (!any(2000))
            b.ctx.serial++;
        if (b.n_pending && !any(4))
            judge_one(&b, any(b.n_pending));
        compare_counts(&b);
    }
    check_variety(&b);
    while (b.n_pending)
        judge_one(&b, 0);
    b.ctx.now_s += MOAT_FRAGMENT_S;
    age(&b);
    compare_counts(&b);
    ck_assert_uint_eq(moat_fragments_used(b.table, UINT32_MAX), 0);
    ck_assert_uint_eq(moat_fragments_held(b.table, UINT32_MAX), 0);
    moat_fragments_destroy(b.table);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("fragment_twin");
    TCase *tc = tcase_create("twin");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, agrees_with_a_plain_list);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
