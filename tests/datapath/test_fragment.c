/* SPDX-License-Identifier: Apache-2.0 */

/* Rows of fragments, named by the RFC that speaks of them; then the table's limits, one by one.
 * Random fragments and threads: test_fragment_twin.c. */

#include "datapath/fragment.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LEN(A) (sizeof(A) / sizeof *(A))

static const struct moat_key a_key = {.tag = 9, .local = 1, .remote = 2, .lport = 3, .proto = 17};

/* --- one fragment --- */

struct frag {
    struct moat_pkt p;
    uint8_t src[16], dst[16];
    uint8_t bytes[MOAT_FRAGMENT_HELD_BYTES + 8];
};

/* `number` goes into the bytes, to know the frame again. */
static void make(struct frag *f, uint32_t id, uint32_t at, uint32_t len, bool more, uint32_t number)
{
    memset(f, 0, offsetof(struct frag, bytes));
    f->src[0] = f->dst[0] = 10;
    f->src[3] = 1;
    f->dst[3] = 2;
    memcpy(f->bytes, &number, sizeof number);
    f->bytes[63] = (uint8_t)number;
    f->p.data = f->bytes;
    f->p.len = f->p.total = 64;
    f->p.family = MOAT_FAM_IP4;
    f->p.kind = at ? MOAT_PKT_IP_OTHER : MOAT_PKT_UDP;
    f->p.proto = 17;
    f->p.frag = at ? 2 : 1;
    f->p.frag_more = more;
    f->p.frag_id = id;
    f->p.frag_at = (uint16_t)at;
    f->p.frag_len = len;
    f->p.frag_head = 20;
    f->p.src = f->src;
    f->p.dst = f->dst;
}

static const struct moat_fragment_ctx slot0 = {
    .slot = 0, .tag = 4096, .serial = 7, .limit = 100, .now_s = 1000};

static struct moat_fragments *new_table(uint32_t n_datagrams, uint32_t n_held)
{
    struct moat_fragments *t = moat_fragments_create(&(struct moat_fragment_conf){
        .n_slots = 4, .n_datagrams = n_datagrams, .n_held = n_held, .seed = {1, 2}});

    ck_assert_ptr_nonnull(t);
    return t;
}

/* Nothing leaks: when all time is up, all is free. */
static void end_table(struct moat_fragments *t, uint32_t now_s)
{
    for (int i = 0; i < 20; i++)
        moat_fragments_age(t, now_s + MOAT_FRAGMENT_S);
    for (uint32_t slot = 0; slot < 4; slot++) {
        ck_assert_uint_eq(moat_fragments_used(t, slot), 0);
        ck_assert_uint_eq(moat_fragments_held(t, slot), 0);
    }
    ck_assert_uint_eq(moat_fragments_used(t, UINT32_MAX), 0);
    ck_assert_uint_eq(moat_fragments_held(t, UINT32_MAX), 0);
    moat_fragments_destroy(t);
}

struct released {
    uint32_t n, number[8];
};

static void note_release(void *aux, const uint8_t *frame, uint32_t len)
{
    struct released *r = aux;

    ck_assert_uint_lt(r->n, LEN(r->number));
    ck_assert_uint_ge(len, 64);
    memcpy(&r->number[r->n++], frame, 4);
}

static enum moat_fragment_say in_at(struct moat_fragments *t, const struct moat_fragment_ctx *c,
                                    uint32_t id, uint32_t at, uint32_t len, bool more,
                                    struct moat_fragment_answer *a)
{
    struct frag f;

    make(&f, id, at, len, more, at);
    return moat_fragment_in(t, c, &f.p, a);
}

/* --- rows --- */

enum { YES = 1, NO, LATER }; /* what is said of the first one; LATER: nothing, yet */

struct step {
    uint16_t at, len;
    uint8_t more, say, reason;
    uint8_t verdict;
    uint8_t n; /* held ones that are released by a yes, else dropped */
};

#define MF 1
#define LAST 0
#define JUDGE .say = MOAT_FRAGMENT_JUDGE, .reason = 0
#define PASS .say = MOAT_FRAGMENT_PASS, .reason = 0
#define HOLD .say = MOAT_FRAGMENT_HOLD, .reason = 0
#define WHY(R) .say = MOAT_FRAGMENT_REFUSE, .reason = MOAT_R_##R

static const struct row {
    const char *name;
    uint32_t used; /* datagrams that are left */
    struct step steps[24];
} rows[] = {
    {"RFC 791: in order", 0, {{0, 24, MF, JUDGE, YES}, {24, 24, MF, PASS}, {48, 3, LAST, PASS}}},
    {"RFC 791: two fragments", 0, {{0, 1480, MF, JUDGE, YES}, {1480, 20, LAST, PASS}}},
    {"RFC 791: reversed", 0, {{48, 3, LAST, HOLD}, {24, 24, MF, HOLD}, {0, 24, MF, JUDGE, YES, 2}}},
    {"RFC 791: last comes early",
     0,
     {{0, 24, MF, JUDGE, YES}, {48, 3, LAST, PASS}, {24, 24, MF, PASS}}},
    {"RFC 791: longest", 0, {{0, 24, MF, JUDGE, YES}, {24, 65491, LAST, PASS}}},
    {"no first one, nothing passes", 1, {{24, 24, MF, HOLD}, {48, 8, LAST, HOLD}}},
    {"the first one is refused",
     1,
     {{24, 24, MF, HOLD}, {0, 24, MF, JUDGE, NO, 1}, {48, 8, LAST, WHY(FRAG)}}},
    {"a refused first one does not come again",
     1,
     {{0, 24, MF, JUDGE, NO}, {0, 24, MF, WHY(FRAG)}, {24, 8, LAST, WHY(FRAG)}}},
    {"RFC 5722: overlap",
     1,
     {{0, 24, MF, JUDGE, YES},
      {16, 16, MF, WHY(FRAG_OVERLAP)},
      {24, 24, MF, WHY(FRAG)},
      {48, 8, LAST, WHY(FRAG)}}},
    {"RFC 5722: by 8 bytes at its end",
     1,
     {{0, 24, MF, JUDGE, YES},
      {32, 16, MF, PASS},
      {24, 16, MF, WHY(FRAG_OVERLAP)},
      {24, 8, MF, WHY(FRAG)}}},
    {"RFC 5722: a fragment inside another",
     1,
     {{0, 48, MF, JUDGE, YES}, {24, 8, MF, WHY(FRAG_OVERLAP)}, {48, 8, LAST, WHY(FRAG)}}},
    {"RFC 5722: a fragment around another",
     1,
     {{0, 24, MF, JUDGE, YES}, {32, 8, MF, PASS}, {24, 24, MF, WHY(FRAG_OVERLAP)}}},
    {"RFC 5722: around two that touch",
     1,
     {{0, 24, MF, JUDGE, YES},
      {24, 8, MF, PASS},
      {32, 8, MF, PASS},
      {24, 16, MF, WHY(FRAG_OVERLAP)}}},
    {"RFC 5722: one of two that came as one",
     1,
     {{0, 24, MF, JUDGE, YES}, {24, 16, MF, PASS}, {24, 8, MF, WHY(FRAG_OVERLAP)}}},
    {"RFC 5722: the other of two that came as one",
     1,
     {{0, 24, MF, JUDGE, YES}, {24, 16, MF, PASS}, {32, 8, MF, WHY(FRAG_OVERLAP)}}},
    {"RFC 5722: held ones overlap",
     1,
     {{24, 16, MF, HOLD},
      {48, 8, MF, HOLD},
      {32, 16, MF, WHY(FRAG_OVERLAP), 0, 2},
      {0, 24, MF, WHY(FRAG)}}},
    {"RFC 5722: the first one overlaps a held one",
     1,
     {{16, 16, MF, HOLD}, {0, 24, MF, WHY(FRAG_OVERLAP), 0, 1}, {32, 8, LAST, WHY(FRAG)}}},
    {"RFC 5722: a second, longer first one",
     1,
     {{0, 24, MF, JUDGE, YES}, {0, 32, MF, WHY(FRAG_OVERLAP)}, {24, 8, LAST, WHY(FRAG)}}},
    {"RFC 5722: a second, shorter first one",
     1,
     {{0, 24, MF, JUDGE, YES}, {0, 16, MF, WHY(FRAG_OVERLAP)}, {24, 8, LAST, WHY(FRAG)}}},
    {"RFC 5722: overlap while the first one is judged",
     1,
     {{0, 24, MF, JUDGE, LATER},
      {24, 8, MF, HOLD},
      {16, 16, MF, WHY(FRAG_OVERLAP), YES, 1},
      {24, 8, MF, WHY(FRAG)}}},
    {"RFC 8200: exact duplicates are refused alone",
     0,
     {{0, 24, MF, JUDGE, YES},
      {0, 24, MF, WHY(FRAG_OVERLAP)},
      {24, 16, MF, PASS},
      {40, 8, MF, PASS},
      {24, 16, MF, WHY(FRAG_OVERLAP)},
      {40, 8, MF, WHY(FRAG_OVERLAP)},
      {48, 8, LAST, PASS}}},
    {"RFC 8200: duplicate of the last one",
     0,
     {{0, 24, MF, JUDGE, YES},
      {32, 3, LAST, PASS},
      {32, 3, LAST, WHY(FRAG_OVERLAP)},
      {24, 8, MF, PASS}}},
    {"RFC 8200: duplicate of a held one",
     0,
     {{24, 8, LAST, HOLD}, {24, 8, LAST, WHY(FRAG_OVERLAP)}, {0, 24, MF, JUDGE, YES, 1}}},
    {"RFC 8200: duplicate across a word of places",
     0,
     {{0, 504, MF, JUDGE, YES},
      {504, 1024, MF, PASS},
      {504, 1024, MF, WHY(FRAG_OVERLAP)},
      {1528, 8, LAST, PASS}}},
    {"a late duplicate begins anew, and waits",
     1,
     {{0, 24, MF, JUDGE, YES}, {24, 8, LAST, PASS}, {24, 8, LAST, HOLD}}},
    {"behind the end",
     1,
     {{0, 24, MF, JUDGE, YES},
      {32, 8, LAST, PASS},
      {40, 8, MF, WHY(FRAG_SIZE)},
      {24, 8, MF, WHY(FRAG)}}},
    {"across the end",
     1,
     {{0, 24, MF, JUDGE, YES}, {32, 3, LAST, PASS}, {32, 8, MF, WHY(FRAG_SIZE)}}},
    {"more is to follow the end",
     1,
     {{0, 24, MF, JUDGE, YES}, {32, 8, LAST, PASS}, {32, 8, MF, WHY(FRAG_SIZE)}}},
    {"the end is where more was to follow",
     1,
     {{0, 24, MF, JUDGE, YES}, {32, 8, MF, PASS}, {32, 8, LAST, WHY(FRAG_SIZE)}}},
    {"the end comes before what came",
     1,
     {{0, 24, MF, JUDGE, YES}, {40, 8, MF, PASS}, {24, 8, LAST, WHY(FRAG_SIZE)}}},
    {"two ends", 1, {{0, 24, MF, JUDGE, YES}, {32, 8, LAST, PASS}, {24, 3, LAST, WHY(FRAG_SIZE)}}},
    {"two ends, the second behind the first",
     1,
     {{0, 24, MF, JUDGE, YES}, {32, 8, LAST, PASS}, {40, 8, LAST, WHY(FRAG_SIZE)}}},
    {"held ones disagree about the end",
     1,
     {{32, 8, LAST, HOLD}, {40, 8, LAST, WHY(FRAG_SIZE), 0, 1}, {0, 24, MF, WHY(FRAG)}}},
    {"sixteen pieces, joined on both sides, on the right, on the left",
     1,
     {{0, 8, MF, JUDGE, YES},
      {16, 8, MF, PASS},
      {32, 8, MF, PASS},
      {48, 8, MF, PASS},
      {64, 8, MF, PASS},
      {80, 8, MF, PASS},
      {96, 8, MF, PASS},
      {112, 8, MF, PASS},
      {128, 8, MF, PASS},
      {144, 8, MF, PASS},
      {160, 8, MF, PASS},
      {176, 8, MF, PASS},
      {192, 8, MF, PASS},
      {208, 8, MF, PASS},
      {224, 8, MF, PASS},
      {256, 8, LAST, PASS},
      {248, 8, MF, PASS},
      {232, 8, MF, PASS},
      {8, 8, MF, PASS}}},
    {"seventeen pieces",
     1,
     {{0, 8, MF, JUDGE, YES},
      {16, 8, MF, PASS},
      {32, 8, MF, PASS},
      {48, 8, MF, PASS},
      {64, 8, MF, PASS},
      {80, 8, MF, PASS},
      {96, 8, MF, PASS},
      {112, 8, MF, PASS},
      {128, 8, MF, PASS},
      {144, 8, MF, PASS},
      {160, 8, MF, PASS},
      {176, 8, MF, PASS},
      {192, 8, MF, PASS},
      {208, 8, MF, PASS},
      {224, 8, MF, PASS},
      {240, 8, MF, PASS},
      {256, 8, MF, WHY(FRAG)},
      {8, 8, MF, WHY(FRAG)}}},
    {"a fifth one is not held, and may come again",
     0,
     {{8, 8, MF, HOLD},
      {16, 8, MF, HOLD},
      {24, 8, MF, HOLD},
      {32, 8, MF, HOLD},
      {40, 8, LAST, WHY(FRAG)},
      {0, 8, MF, JUDGE, YES, 4},
      {40, 8, LAST, PASS}}},
};

static void run_step(struct moat_fragments *t, const struct step *s,
                     struct moat_fragment_answer *pending, const char *what)
{
    struct released r = {0};
    struct moat_fragment_answer a;
    enum moat_fragment_say say = in_at(t, &slot0, 1, s->at, s->len, s->more, &a);

    ck_assert_msg(say == s->say, "%s: said %d, %s", what, say, moat_reason_name(a.reason));
    ck_assert_msg(a.reason == s->reason, "%s: %s", what, moat_reason_name(a.reason));
    if (say == MOAT_FRAGMENT_JUDGE)
        *pending = a;
    if (say == MOAT_FRAGMENT_PASS) {
        ck_assert(a.has_key);
        ck_assert_mem_eq(&a.key, &a_key, sizeof a_key);
        ck_assert_uint_eq(a.hash, 77);
    }
    if (say != MOAT_FRAGMENT_JUDGE)
        ck_assert_msg(a.dropped == s->n, "%s: %u dropped", what, a.dropped);
    if (s->verdict == YES || s->verdict == NO) {
        unsigned n =
            moat_fragment_judged(t, pending, s->verdict == YES, &a_key, 77, note_release, &r);

        ck_assert_uint_eq(n, say == MOAT_FRAGMENT_JUDGE ? s->n : 0);
        ck_assert_uint_eq(r.n, s->verdict == YES ? n : 0);
    }
}

START_TEST(one_datagram)
{
    const struct row *r = &rows[_i];
    struct moat_fragments *t = new_table(0, 0);
    struct moat_fragment_answer pending = {0};

    for (unsigned i = 0; i < LEN(r->steps) && r->steps[i].len; i++) {
        char what[128];

        snprintf(what, sizeof what, "%s, step %u", r->name, i);
        run_step(t, &r->steps[i], &pending, what);
    }
    ck_assert_msg(moat_fragments_used(t, 0) == r->used, "%s: %u are left", r->name,
                  moat_fragments_used(t, 0));
    end_table(t, 1000);
}
END_TEST

/* The header of the first one counts (RFC 791; RFC 8200, section 4.5): each fragment fits by
 * itself, with its own header, but not with that one. */
START_TEST(first_header_counts)
{
    static const struct {
        uint16_t head;
        bool fits;
    } table[] = {{20, true}, {24, false}, {60, false}};

    for (size_t i = 0; i < LEN(table); i++) {
        for (int first = 0; first < 2; first++) {
            struct moat_fragments *t = new_table(0, 0);
            struct moat_fragment_answer a;
            enum moat_fragment_say say[2];
            struct frag f, l;

            make(&f, 1, 0, 24, true, 1);
            f.p.frag_head = table[i].head;
            make(&l, 1, 65504, 11, false, 2);
            say[0] = moat_fragment_in(t, &slot0, first ? &f.p : &l.p, &a);
            if (first)
                moat_fragment_judged(t, &a, true, NULL, 0, NULL, NULL);
            say[1] = moat_fragment_in(t, &slot0, first ? &l.p : &f.p, &a);
            ck_assert_int_eq(say[0], first ? MOAT_FRAGMENT_JUDGE : MOAT_FRAGMENT_HOLD);
            ck_assert_int_eq(say[1], !table[i].fits ? MOAT_FRAGMENT_REFUSE
                                     : first        ? MOAT_FRAGMENT_PASS
                                                    : MOAT_FRAGMENT_JUDGE);
            ck_assert_uint_eq(a.reason, table[i].fits ? MOAT_R_NONE : MOAT_R_FRAG_SIZE);
            end_table(t, 1000);
        }
    }
}
END_TEST

/* What the parser never says is refused, and changes nothing. */
START_TEST(unsound_packets)
{
    struct moat_fragments *t = new_table(0, 0);
    struct moat_fragment_ctx c = slot0;
    struct moat_fragment_answer a;
    struct frag f;

#define REFUSED(CHANGE)                                                                            \
    do {                                                                                           \
        make(&f, 1, 8, 8, true, 1);                                                                \
        CHANGE;                                                                                    \
        ck_assert_int_eq(moat_fragment_in(t, &c, &f.p, &a), MOAT_FRAGMENT_REFUSE);                 \
        ck_assert_uint_eq(a.reason, MOAT_R_INTERNAL);                                              \
    } while (0)
    REFUSED(f.p.frag = 0);
    REFUSED(f.p.frag_len = 0);
    REFUSED(f.p.frag_len = UINT32_MAX);
    REFUSED(f.p.frag_len = UINT32_MAX - 7);
    REFUSED(f.p.frag_len = 9);
    REFUSED(f.p.frag_at = 9);
    REFUSED((f.p.frag_at = 0, f.p.frag_more = 0));
    REFUSED((f.p.frag_at = 65504, f.p.frag_len = 16));
    REFUSED(c.slot = 4);
#undef REFUSED
    ck_assert_uint_eq(moat_fragments_used(t, UINT32_MAX), 0);
    ck_assert_uint_eq(moat_fragments_used(t, 4), 0);
    ck_assert_uint_eq(moat_fragments_held(t, 4), 0);
    end_table(t, 1000);
}
END_TEST

START_TEST(bad_sizes)
{
    static const struct moat_fragment_conf table[] = {
        {.n_slots = 0},
        {.n_slots = 1u << 30},
        {.n_slots = 1, .n_datagrams = UINT32_MAX},
        {.n_slots = 1, .n_held = UINT32_MAX},
    };

    for (size_t i = 0; i < LEN(table); i++) {
        errno = 0;
        ck_assert_ptr_null(moat_fragments_create(&table[i]));
        ck_assert_int_eq(errno, EINVAL);
    }
    moat_fragments_destroy(NULL);
}
END_TEST

/* --- names --- */

/* Change number n of a fragment and its context; false: there are no more.  *same: it is to
 * belong to the same datagram all the same. */
static bool vary(unsigned n, struct moat_fragment_ctx *c, struct frag *f, bool *same)
{
    *same = false;
    switch (n) {
    case 0:
        c->slot = 1;
        return true;
    case 1:
        c->tag++;
        return true;
    case 2:
        c->dir = MOAT_TO_VM;
        return true;
    case 3:
        f->src[3]++;
        return true;
    case 4:
        f->dst[0]++;
        return true;
    case 5:
        f->p.frag_id += 0x10000;
        return true;
    case 6:
        f->p.vlan = 5;
        return true;
    case 7:
        f->p.proto = 6;
        *same = f->p.family == MOAT_FAM_IP6;
        return true;
    case 8:
        f->src[15]++;
        *same = f->p.family == MOAT_FAM_IP4; /* not of the address */
        return true;
    case 9:
        f->p.family = f->p.family == MOAT_FAM_IP4 ? MOAT_FAM_IP6 : MOAT_FAM_IP4;
        return true;
    default:
        return false;
    }
}

START_TEST(names_are_kept_apart)
{
    for (int family = 4; family <= 6; family += 2) {
        for (unsigned n = 0;; n++) {
            struct moat_fragments *t = new_table(0, 0);
            struct moat_fragment_ctx c = slot0;
            struct moat_fragment_answer a;
            struct frag f;
            bool same, more;

            make(&f, 1, 0, 24, true, 1);
            f.p.family = (uint8_t)family;
            ck_assert_int_eq(moat_fragment_in(t, &c, &f.p, &a), MOAT_FRAGMENT_JUDGE);
            moat_fragment_judged(t, &a, true, NULL, 0, NULL, NULL);
            make(&f, 1, 24, 24, true, 1);
            f.p.family = (uint8_t)family;
            more = vary(n, &c, &f, &same);
            ck_assert_int_eq(moat_fragment_in(t, &c, &f.p, &a),
                             !more || same ? MOAT_FRAGMENT_PASS : MOAT_FRAGMENT_HOLD);
            ck_assert(!a.has_key);
            end_table(t, 1000);
            if (!more)
                break;
        }
    }
}
END_TEST

/* --- time --- */

START_TEST(time_is_up)
{
    struct moat_fragments *t = new_table(0, 0);
    struct moat_fragment_ctx c = slot0;
    struct moat_fragment_answer a;

    in_at(t, &c, 1, 0, 24, true, &a);
    moat_fragment_judged(t, &a, true, NULL, 0, NULL, NULL);
    c.now_s += MOAT_FRAGMENT_S - 1;
    ck_assert_int_eq(in_at(t, &c, 1, 24, 8, true, &a), MOAT_FRAGMENT_PASS);
    c.now_s++; /* dead for look-ups; the old one makes room at once */
    ck_assert_int_eq(in_at(t, &c, 1, 32, 8, true, &a), MOAT_FRAGMENT_HOLD);
    ck_assert_uint_eq(a.dropped, 0);
    ck_assert_uint_eq(moat_fragments_used(t, 0), 1);
    c.now_s += MOAT_FRAGMENT_S; /* and a held one goes with it */
    ck_assert_int_eq(in_at(t, &c, 1, 24, 8, true, &a), MOAT_FRAGMENT_HOLD);
    ck_assert_uint_eq(a.dropped, 1);
    ck_assert_uint_eq(moat_fragments_held(t, 0), 1);
    /* The clock of another thread is behind: it is not dead. */
    c.now_s--;
    ck_assert_int_eq(in_at(t, &c, 1, 0, 24, true, &a), MOAT_FRAGMENT_JUDGE);
    end_table(t, c.now_s + 1);
}
END_TEST

/* 32-bit seconds come round. */
START_TEST(clock_wraps)
{
    struct moat_fragments *t = new_table(0, 0);
    struct moat_fragment_ctx c = slot0;
    struct moat_fragment_answer a;

    c.now_s = UINT32_MAX - 3;
    in_at(t, &c, 1, 0, 24, true, &a);
    moat_fragment_judged(t, &a, true, NULL, 0, NULL, NULL);
    c.now_s = 10;
    ck_assert_int_eq(in_at(t, &c, 1, 24, 8, true, &a), MOAT_FRAGMENT_PASS);
    c.now_s = MOAT_FRAGMENT_S - 4;
    ck_assert_int_eq(in_at(t, &c, 1, 32, 8, true, &a), MOAT_FRAGMENT_HOLD);
    end_table(t, c.now_s);
}
END_TEST

START_TEST(ageing_takes_slices)
{
    struct moat_fragments *t = new_table(400, 400);
    struct moat_fragment_ctx c = slot0;
    struct moat_fragment_answer a;
    unsigned dropped = 0;

    c.limit = 400;
    for (uint32_t id = 0; id < 400; id++)
        ck_assert_int_eq(in_at(t, &c, id, id % 5 ? 0 : 8, 8, true, &a),
                         id % 5 ? MOAT_FRAGMENT_JUDGE : MOAT_FRAGMENT_HOLD);
    for (int i = 0; i < 20; i++)
        ck_assert_uint_eq(moat_fragments_age(t, c.now_s + MOAT_FRAGMENT_S - 1), 0);
    ck_assert_uint_eq(moat_fragments_used(t, 0), 400);
    dropped += moat_fragments_age(t, c.now_s + MOAT_FRAGMENT_S);
    ck_assert_uint_lt(moat_fragments_used(t, 0), 400);
    ck_assert_uint_gt(moat_fragments_used(t, 0), 300);
    for (int i = 1; i < 20; i++)
        dropped += moat_fragments_age(t, c.now_s + MOAT_FRAGMENT_S);
    ck_assert_uint_eq(moat_fragments_used(t, 0), 0);
    ck_assert_uint_eq(dropped, 80);
    end_table(t, c.now_s);
}
END_TEST

/* --- limits --- */

START_TEST(quota_of_a_slot)
{
    struct moat_fragments *t = new_table(64, 64);
    struct moat_fragment_ctx c = slot0, other = slot0;
    struct moat_fragment_answer a;

    c.limit = 8;
    other.slot = 1;
    for (uint32_t id = 0; id < 8; id++)
        in_at(t, &c, id, id % 2 ? 0 : 8, 8, true, &a);
    ck_assert_uint_eq(moat_fragments_used(t, 0), 8);
    for (uint32_t id = 100; id < 110; id++) {
        ck_assert_int_eq(in_at(t, &c, id, id % 2 ? 0 : 8, 8, true, &a), MOAT_FRAGMENT_REFUSE);
        ck_assert_uint_eq(a.reason, MOAT_R_FRAG_QUOTA);
    }
    ck_assert_int_eq(in_at(t, &other, 100, 0, 8, true, &a), MOAT_FRAGMENT_JUDGE);
    /* What is under way goes on, and makes room when it is complete. */
    ck_assert_int_eq(in_at(t, &c, 0, 0, 8, true, &a), MOAT_FRAGMENT_JUDGE);
    moat_fragment_judged(t, &a, true, NULL, 0, note_release, &(struct released){0});
    ck_assert_int_eq(in_at(t, &c, 0, 16, 8, false, &a), MOAT_FRAGMENT_PASS);
    ck_assert_uint_eq(moat_fragments_used(t, 0), 7);
    ck_assert_int_eq(in_at(t, &c, 100, 8, 8, true, &a), MOAT_FRAGMENT_HOLD);
    c.limit = 0;
    ck_assert_int_eq(in_at(t, &c, 101, 0, 8, true, &a), MOAT_FRAGMENT_REFUSE);
    end_table(t, 1000);
}
END_TEST

START_TEST(table_is_full)
{
    struct moat_fragments *t = new_table(10, 64);
    struct moat_fragment_ctx c = slot0;
    struct moat_fragment_answer a;

    for (uint32_t id = 0; id < 10; id++)
        ck_assert_int_eq(in_at(t, &c, id, 0, 8, true, &a), MOAT_FRAGMENT_JUDGE);
    c.slot = 1;
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(in_at(t, &c, 1, 0, 8, true, &a), MOAT_FRAGMENT_REFUSE);
        ck_assert_uint_eq(a.reason, MOAT_R_TABLE_FULL);
        ck_assert_uint_eq(moat_fragments_used(t, 1), 0);
    }
    ck_assert_uint_eq(moat_fragments_used(t, UINT32_MAX), 10);
    end_table(t, 1000);
}
END_TEST

/* A slot gets a quarter of what can be held; what is not held leaves no datagram behind. */
START_TEST(held_ones_of_a_slot)
{
    struct moat_fragments *t = new_table(64, 16);
    struct moat_fragment_ctx c = slot0;
    struct moat_fragment_answer a;

    for (c.slot = 0; c.slot < 4; c.slot++) {
        for (uint32_t id = 0; id < 6; id++) {
            ck_assert_int_eq(in_at(t, &c, id, 8, 8, true, &a),
                             id < 4 ? MOAT_FRAGMENT_HOLD : MOAT_FRAGMENT_REFUSE);
            ck_assert_uint_eq(a.reason, id < 4 ? MOAT_R_NONE : MOAT_R_FRAG);
        }
        ck_assert_uint_eq(moat_fragments_used(t, c.slot), 4);
        ck_assert_uint_eq(moat_fragments_held(t, c.slot), 4);
    }
    ck_assert_uint_eq(moat_fragments_held(t, UINT32_MAX), 16);
    end_table(t, 1000);
    t = new_table(64, 1); /* one for whoever comes first */
    c.slot = 0;
    ck_assert_int_eq(in_at(t, &c, 1, 8, 8, true, &a), MOAT_FRAGMENT_HOLD);
    c.slot = 1;
    ck_assert_int_eq(in_at(t, &c, 1, 8, 8, true, &a), MOAT_FRAGMENT_REFUSE);
    ck_assert_uint_eq(moat_fragments_held(t, 1), 0);
    end_table(t, 1000);
}
END_TEST

START_TEST(frames_that_cannot_be_held)
{
    static const struct {
        uint32_t len, total;
        bool held;
    } table[] = {{64, 64, true}, {64, 65, false}, {2048, 2048, true}, {2049, 2049, false}};

    for (size_t i = 0; i < LEN(table); i++) {
        struct moat_fragments *t = new_table(64, 16);
        struct released r = {0};
        struct moat_fragment_answer a;
        struct frag f;

        make(&f, 1, 8, 8, false, 4711);
        f.p.len = table[i].len;
        f.p.total = table[i].total;
        ck_assert_int_eq(moat_fragment_in(t, &slot0, &f.p, &a),
                         table[i].held ? MOAT_FRAGMENT_HOLD : MOAT_FRAGMENT_REFUSE);
        ck_assert_uint_eq(moat_fragments_used(t, 0), table[i].held);
        in_at(t, &slot0, 1, 0, 8, true, &a);
        moat_fragment_judged(t, &a, true, NULL, 0, note_release, &r);
        ck_assert_uint_eq(r.n, table[i].held);
        if (r.n) {
            ck_assert_uint_eq(r.number[0], 4711);
        } else {
            /* Of a known datagram neither. */
            ck_assert_int_eq(moat_fragment_in(t, &slot0, &f.p, &a), MOAT_FRAGMENT_PASS);
            in_at(t, &slot0, 2, 0, 8, true, &a);
            f.p.frag_id = 2;
            ck_assert_int_eq(moat_fragment_in(t, &slot0, &f.p, &a), MOAT_FRAGMENT_REFUSE);
        }
        end_table(t, 1000);
    }
}
END_TEST

/* --- verdicts --- */

START_TEST(newer_ruleset)
{
    struct moat_fragments *t = new_table(0, 0);
    struct moat_fragment_ctx old = slot0, new = slot0;
    struct moat_fragment_answer a, b;

    new.serial++;
    in_at(t, &old, 1, 0, 24, true, &a);
    moat_fragment_judged(t, &a, true, NULL, 0, NULL, NULL);
    ck_assert_int_eq(in_at(t, &new, 1, 24, 8, true, &a), MOAT_FRAGMENT_REFUSE);
    ck_assert_uint_eq(a.reason, MOAT_R_POLICY_CHANGE);
    ck_assert_int_eq(in_at(t, &old, 1, 24, 8, true, &a), MOAT_FRAGMENT_REFUSE);
    ck_assert_uint_eq(a.reason, MOAT_R_FRAG);

    /* While it is judged: the yes comes too late. */
    in_at(t, &old, 2, 8, 8, true, &a);
    in_at(t, &old, 2, 0, 8, true, &a);
    ck_assert_int_eq(in_at(t, &new, 2, 16, 8, true, &b), MOAT_FRAGMENT_REFUSE);
    ck_assert_uint_eq(b.reason, MOAT_R_POLICY_CHANGE);
    ck_assert_uint_eq(b.dropped, 1);
    ck_assert_uint_eq(moat_fragment_judged(t, &a, true, NULL, 0, NULL, NULL), 0);
    ck_assert_int_eq(in_at(t, &new, 2, 16, 8, true, &b), MOAT_FRAGMENT_REFUSE);

    /* Nothing was said yet about one that waits; then the older one's word is the older one's. */
    in_at(t, &new, 3, 8, 8, true, &a);
    ck_assert_int_eq(in_at(t, &old, 3, 0, 8, true, &a), MOAT_FRAGMENT_JUDGE);
    moat_fragment_judged(t, &a, true, NULL, 0, note_release, &(struct released){0});
    ck_assert_int_eq(in_at(t, &new, 3, 16, 8, true, &a), MOAT_FRAGMENT_REFUSE);
    ck_assert_uint_eq(a.reason, MOAT_R_POLICY_CHANGE);

    /* A thread that still has the older view: the newer one's yes holds for it. */
    in_at(t, &new, 4, 0, 8, true, &a);
    moat_fragment_judged(t, &a, true, NULL, 0, NULL, NULL);
    ck_assert_int_eq(in_at(t, &old, 4, 8, 8, true, &a), MOAT_FRAGMENT_PASS);
    end_table(t, 1000);
}
END_TEST

/* A verdict is of the datagram that asked for it, not of one with its name. */
START_TEST(verdict_comes_too_late)
{
    struct moat_fragments *t = new_table(1, 4);
    struct moat_fragment_ctx c = slot0;
    struct moat_fragment_answer old, a, b;

    in_at(t, &c, 1, 0, 24, true, &old);
    c.now_s += MOAT_FRAGMENT_S;
    ck_assert_int_eq(in_at(t, &c, 1, 0, 24, true, &a), MOAT_FRAGMENT_JUDGE);
    ck_assert_uint_eq(moat_fragment_judged(t, &old, true, NULL, 0, NULL, NULL), 0);
    ck_assert_int_eq(in_at(t, &c, 1, 24, 8, true, &b), MOAT_FRAGMENT_HOLD);
    ck_assert_uint_eq(moat_fragment_judged(t, &old, false, NULL, 0, NULL, NULL), 0);
    ck_assert_uint_eq(moat_fragment_judged(t, &a, false, NULL, 0, NULL, NULL), 1);
    ck_assert_int_eq(in_at(t, &c, 1, 24, 8, true, &b), MOAT_FRAGMENT_REFUSE);
    end_table(t, c.now_s);
}
END_TEST

/* A later one's session has gone: a no condemns, another yes says nothing. */
START_TEST(verdict_of_a_later_one)
{
    struct moat_fragments *t = new_table(0, 0);
    struct moat_fragment_answer a, b;

    in_at(t, &slot0, 1, 0, 24, true, &a);
    moat_fragment_judged(t, &a, true, &a_key, 5, NULL, NULL);
    in_at(t, &slot0, 1, 24, 8, true, &a);
    ck_assert_uint_eq(moat_fragment_judged(t, &a, true, NULL, 6, NULL, NULL), 0);
    ck_assert_int_eq(in_at(t, &slot0, 1, 32, 8, true, &b), MOAT_FRAGMENT_PASS);
    ck_assert(b.has_key && b.hash == 5);
    ck_assert_uint_eq(moat_fragment_judged(t, &b, false, NULL, 0, NULL, NULL), 0);
    ck_assert_int_eq(in_at(t, &slot0, 1, 40, 8, true, &b), MOAT_FRAGMENT_REFUSE);
    ck_assert_uint_eq(b.reason, MOAT_R_FRAG);
    end_table(t, 1000);
}
END_TEST

/* A TCP segment grows with its fragments; its FIN is behind all of it. */
START_TEST(tcp_segment_grows)
{
    struct moat_fragments *t = new_table(0, 0);
    struct moat_fragment_answer a;
    struct frag f;

    for (int held = 0; held < 2; held++) {
        uint32_t id = (uint32_t)held;

        if (held)
            in_at(t, &slot0, id, 72, 5, false, &a);
        make(&f, id, 0, 48, true, 1);
        f.p.kind = MOAT_PKT_TCP;
        f.p.tcp = (struct moat_tcp_seg){
            .seq = 100, .ack = 5, .len = 28, .win = 9, .flags = MOAT_TCP_FIN | MOAT_TCP_ACK};
        ck_assert_int_eq(moat_fragment_in(t, &slot0, &f.p, &a), MOAT_FRAGMENT_JUDGE);
        ck_assert_uint_eq(a.tcp.seq, 100);
        ck_assert_uint_eq(a.tcp.win, 9);
        ck_assert_uint_eq(a.tcp.len, held ? 57 : 28);
        ck_assert_uint_eq(a.tcp.flags, held ? f.p.tcp.flags : MOAT_TCP_ACK);
        moat_fragment_judged(t, &a, true, &a_key, 1, note_release, &(struct released){0});
        in_at(t, &slot0, id, 48, 8, true, &a);
        ck_assert_uint_eq(a.tcp.len, held ? 57 : 36);
        ck_assert_uint_eq(a.tcp.ack, 5);
        if (!held) {
            ck_assert_uint_eq(a.tcp.flags, MOAT_TCP_ACK);
            in_at(t, &slot0, id, 72, 5, false, &a);
            ck_assert_uint_eq(a.tcp.len, 57);
            ck_assert_uint_eq(a.tcp.flags, f.p.tcp.flags);
        }
        ck_assert_int_eq(in_at(t, &slot0, id, 56, 16, true, &a), MOAT_FRAGMENT_PASS);
        ck_assert_uint_eq(a.tcp.len, 57);
    }
    in_at(t, &slot0, 9, 0, 8, true, &a); /* others have none */
    ck_assert_uint_eq(a.tcp.len, 0);
    end_table(t, 1000);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("fragment");
    TCase *tc = tcase_create("fragment");
    SRunner *sr;
    int failed;

    tcase_add_loop_test(tc, one_datagram, 0, (int)LEN(rows));
    tcase_add_test(tc, first_header_counts);
    tcase_add_test(tc, unsound_packets);
    tcase_add_test(tc, bad_sizes);
    tcase_add_test(tc, names_are_kept_apart);
    tcase_add_test(tc, time_is_up);
    tcase_add_test(tc, clock_wraps);
    tcase_add_test(tc, ageing_takes_slices);
    tcase_add_test(tc, quota_of_a_slot);
    tcase_add_test(tc, table_is_full);
    tcase_add_test(tc, held_ones_of_a_slot);
    tcase_add_test(tc, frames_that_cannot_be_held);
    tcase_add_test(tc, newer_ruleset);
    tcase_add_test(tc, verdict_comes_too_late);
    tcase_add_test(tc, verdict_of_a_later_one);
    tcase_add_test(tc, tcp_segment_grows);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
