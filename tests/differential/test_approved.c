/* SPDX-License-Identifier: Apache-2.0 */

/* Each approved difference by itself: a conversation whose last packet shows it.  As root. */

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "approved.h"
#include "datapath/parse.h"

/* Rows leave out what is zero. */
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

#define FIN MOAT_TCP_FIN
#define SYN MOAT_TCP_SYN
#define RST MOAT_TCP_RST
#define ACK MOAT_TCP_ACK
#define PSH MOAT_TCP_PSH /* with a SYN Open vSwitch refuses it, and knows no connection then */

enum { C = CLIENT, S = SERVER };

/* seq counts from the sender's initial number, ack from the peer's. */
struct row {
    uint8_t from, flags;
    uint32_t seq, ack;
    uint16_t len, win;
    uint8_t wscale; /* of a SYN */
    uint32_t sack;  /* right edge of a block of one byte */
    bool forged, useless;
    uint8_t kind, type, code;
    int16_t quotes;
};

#define SCALE(N) .wscale = 0x80 | (N)
#define SACK(EDGE) .sack = (EDGE)
#define FORGED .forged = true
#define USELESS .useless = true
#define DATAGRAM(FROM, LEN)                                                                        \
    {                                                                                              \
        .from = FROM, .kind = K_UDP, .len = LEN                                                    \
    }
#define EMPTY(FROM)                                                                                \
    {                                                                                              \
        .from = FROM, .kind = K_OTHER                                                              \
    }
#define ERROR(FROM, TYPE, CODE, ABOUT)                                                             \
    {                                                                                              \
        .from = FROM, .kind = K_ERROR, .type = TYPE, .code = CODE, .quotes = ABOUT, .len = 8       \
    }

/* clang-format off */
#define HANDSHAKE {C, SYN, 0, 0, 0, 1000}, {S, SYN | ACK, 0, 1, 0, 1000}, {C, ACK, 1, 1, 0, 1000}
#define BLIND_OVS {C, SYN | PSH, 0, 0, 0, 1000}, {S, SYN | ACK, 0, 1, 0, 1000},                     \
                  {C, ACK, 1, 1, 0, 1000}
#define CLOSED {C, FIN | ACK, 1, 1, 0, 1000}, {S, FIN | ACK, 1, 2, 0, 1000}, {C, ACK, 2, 2, 0, 1000}
/* clang-format on */

#define MAX_ROWS 20

static const struct {
    const char *name;
    uint8_t difference, mode, shape;
    struct row rows[MAX_ROWS];
} cases[] = {
    {"old-reset",
     LOOSER,
     CHAIN,
     SERVER_IS_VM,
     {HANDSHAKE, {C, ACK, 1, 1, 1000, 1000}, {S, ACK, 1, 801, 0, 200}, {C, RST, 2}}},
    {"at-the-edge",
     LOOSER,
     CHAIN,
     SERVER_IS_VM,
     {{C, SYN, 0, 0, 0, 65535, SCALE(9)},
      {S, SYN | ACK, 0, 1, 0, 2739},
      {S, FIN | ACK, 65535, 1, 0, 5222}}},
    {"data-of-the-syn",
     LOOSER,
     CHAIN,
     CLIENT_IS_VM,
     {{C, SYN | PSH, 0, 0, 900, 335},
      {S, SYN | ACK, 0, 1, 0, 304},
      {C, ACK, 1, 1, 0, 335},
      {S, ACK, 1, 1, 335, 304},
      {C, ACK, 1, 336, 0, 335},
      {S, ACK, 336, 1, 335, 304}}},
    {"used-again",
     LOOSER,
     CHAIN,
     CLIENT_IS_VM,
     {HANDSHAKE, {S, RST, 1}, {C, SYN, 90000, 0, 0, 1000}, {S, SYN, 90000, 0, 0, 1000}}},
    {"half-open",
     LOOSER,
     CHAIN,
     CLIENT_IS_VM,
     {{C, SYN, 0, 0, 0, 1000},
      {S, ACK, 5000, 70000, 0, 1000},
      {C, RST, 70000},
      {S, ACK, 5000, 70000, 0, 1000}}},
    {"simultaneous-open",
     LOOSER,
     CHAIN,
     CLIENT_IS_VM,
     {{C, SYN, 0, 0, 0, 1000},
      {S, SYN, 0, 0, 0, 1000},
      {C, SYN | ACK, 0, 1, 0, 1000},
      {C, ACK, 1, 1, 0, 1000},
      {C, SYN | ACK, 0, 1, 0, 1000}}},
    {"another-first-syn",
     LOOSER,
     CHAIN,
     CLIENT_IS_VM,
     {{C, SYN, 100000, 0, 0, 1000},
      {C, SYN, 0, 0, 0, 1000},
      {S, SYN | ACK, 0, 1, 0, 1000},
      {C, ACK, 1, 1, 100, 1000}}},
    {"another-syn-ack",
     LOOSER,
     CHAIN,
     CLIENT_IS_VM,
     {{C, SYN, 0, 0, 0, 1000},
      {S, SYN | ACK, 0, 1, 0, 1000},
      {S, SYN | ACK, 100000, 1, 0, 1000},
      {C, ACK, 1, 100001, 100, 1000}}},
    {"challenged-syn",
     LOOSER,
     CHAIN,
     SERVER_IS_VM,
     {HANDSHAKE,
      {C, FIN | ACK, 1, 1, 0, 1000},
      {S, FIN | ACK, 1, 2, 100, 1000},
      {C, ACK, 2, 1, 0, 1000},
      {C, SYN, 900000, 0, 0, 1000},
      {S, ACK, 102, 2, 0, 1000},
      {S, FIN | ACK, 1, 2, 100, 1000}}},
    {"sack-ahead", LOOSER, CHAIN, CLIENT_IS_VM, {BLIND_OVS, {S, ACK, 1, 1, 0, 1000, SACK(100)}}},
    {"refused-syn",
     LOOSER,
     SIDE_BY_SIDE,
     CLIENT_IS_VM,
     {HANDSHAKE, CLOSED, {S, SYN, 9000, 0, 0, 1000}, {C, ACK, 2, 2, 0, 1000}}},
    {"after-a-reset",
     LOOSER,
     CHAIN,
     CLIENT_IS_VM,
     {{C, SYN | PSH, 0, 0, 0, 1000}, {C, RST, 1}, {C, RST, 1}}},
    {"nobody-follows",
     LOOSER,
     CHAIN,
     CLIENT_IS_VM,
     {BLIND_OVS, {S, ACK, 1, 1, 10, 1000, SACK(100)}, {C, ACK, 1, 11, 0, 1000}}},
    {"after-a-forgery",
     LOOSER,
     CHAIN,
     SERVER_IS_VM,
     {{C, SYN, 0, 0, 0, 65535, SCALE(6)},
      {S, SYN | ACK, 0, 1, 0, 2195},
      {S, ACK, 65000, 1, 10, 64638, FORGED},
      {C, ACK, 1, 1, 1000, 65535},
      {C, ACK, 1001, 1, 1000, 65535},
      {C, ACK, 2001, 1, 1000, 65535},
      {C, ACK, 3001, 1, 1000, 65535},
      {C, ACK, 4001, 1, 1000, 65535},
      {C, ACK, 5001, 1, 1000, 65535}}},
    {"redirect", LOOSER, CHAIN, BOTH_MAY, {DATAGRAM(C, 10), ERROR(S, 5, 1, -1)}},

    {"forged",
     STRICTER,
     SIDE_BY_SIDE,
     CLIENT_IS_VM,
     {{C, SYN, 0, 0, 0, 1000}, {C, RST, -1155607421u, FORGED}}},
    {"redirected", STRICTER, SIDE_BY_SIDE, CLIENT_IS_VM, {DATAGRAM(C, 10), ERROR(S, 5, 1, 0)}},
    {"empty-quote", STRICTER, SIDE_BY_SIDE, CLIENT_IS_VM, {EMPTY(C), ERROR(S, 3, 1, 0)}},
    {"of-no-use",
     STRICTER,
     SIDE_BY_SIDE,
     CLIENT_IS_VM,
     {HANDSHAKE,
      {C, ACK, 1, 1, 1000, 1000},
      {S, ACK, 1, 1001, 0, 1000},
      {C, ACK, 1001, 1, 1000, 1000},
      {C, ACK, 1, 1, 0, 1000, USELESS}}},
    {"fitting-forgery",
     STRICTER,
     SIDE_BY_SIDE,
     CLIENT_IS_VM,
     {HANDSHAKE, {C, FIN | ACK, 1, 1, 0, 1000, FORGED}, {C, ACK, 1, 1, 100, 1000}}},
    {"after-a-refusal",
     STRICTER,
     SIDE_BY_SIDE,
     CLIENT_IS_VM,
     {{C, SYN, 0, 0, 0, 1000}, {S, ACK, 1, 1, 10, 1000}, {S, ACK, 1, 1, 10, 1000}}},
    {"answer-to-an-earlier-syn",
     STRICTER,
     SIDE_BY_SIDE,
     CLIENT_IS_VM,
     {{C, SYN, 0, 0, 0, 1000}, {C, SYN, 5000, 0, 0, 1000}, {S, SYN | ACK, 0, 1, 0, 1000}}},
    {"late-syn-ack",
     STRICTER,
     SIDE_BY_SIDE,
     SERVER_IS_VM,
     {{C, SYN, 60000, 0, 0, 60000},
      {S, SYN | ACK, 50000, 60001, 0, 60000},
      {C, FIN | ACK, 60001, 50001, 0, 60000},
      {S, FIN | ACK, 50001, 60002, 10, 60000},
      {C, ACK, 60002, 50001, 0, 60000},
      {C, SYN, -3000u, 0, 0, 60000},
      {S, SYN | ACK, 30000, -2999u, 0, 60000},
      {C, ACK, -2999u, 30001, 1000, 60000}}},
    {"lost-fin",
     STRICTER,
     SIDE_BY_SIDE,
     CLIENT_IS_VM,
     {HANDSHAKE,
      {C, FIN | ACK, 1, 1, 10, 1000},
      {S, ACK, 1, 1, 1000, 1000},
      {S, ACK, 1002, 12, 0, 1000}}},
    {"two-answers",
     STRICTER,
     SIDE_BY_SIDE,
     CLIENT_IS_VM,
     {{C, SYN, 0, 0, 0, 1000},
      {S, SYN | ACK, 0, 1, 0, 1000},
      {S, SYN | ACK, 60000, 1, 0, 1000},
      {C, ACK, 1, 1, 0, 1000},
      {S, ACK, 1, 1, 10, 1000}}},
    {"reset-of-an-older-connection",
     STRICTER,
     SIDE_BY_SIDE,
     CLIENT_IS_VM,
     {{C, SYN, 0, 0, 0, 1000}, {S, ACK, 5000, 70000, 0, 1000}, {C, RST, 1}, {C, RST, 70000}}},
    {"bare-reset-answers-a-syn",
     STRICTER,
     SIDE_BY_SIDE,
     CLIENT_IS_VM,
     {{C, SYN, 0, 0, 0, 1000}, {S, RST, 1}}},
    {"simultaneous-open-with-data",
     STRICTER,
     SIDE_BY_SIDE,
     BOTH_MAY,
     {{C, SYN | PSH, 0, 0, 500, 1000},
      {S, SYN, 0, 0, 0, 1000},
      {S, SYN | ACK, 0, 1, 0, 1000},
      {C, SYN | ACK, 0, 1, 0, 1000}}},
};

#define N_CASES (sizeof cases / sizeof *cases)

static uint8_t bytes[TALK_BYTES];

static bool is_end(const struct row *r)
{
    static const struct row none;

    return !memcmp(r, &none, sizeof none);
}

static void make(struct talk *t, unsigned c)
{
    static uint16_t port = 30000;

    memset(t, 0, sizeof *t);
    t->bytes = bytes;
    t->family = 4;
    t->shape = cases[c].shape;
    t->port[C] = port++;
    t->port[S] = 80;
    t->remote = 9;
    t->isn[C] = 1000000;
    t->isn[S] = 2000000;
    t->proto = cases[c].rows[0].kind == K_UDP ? 17 : cases[c].rows[0].kind == K_OTHER ? 200 : 6;
    for (unsigned i = 0; i < MAX_ROWS && !is_end(&cases[c].rows[i]); i++) {
        const struct row *r = &cases[c].rows[i];
        struct packet p = {.from = r->from,
                           .kind = r->kind,
                           .flags = r->flags,
                           .seq = t->isn[r->from] + r->seq,
                           .ack = r->flags & ACK ? t->isn[!r->from] + r->ack : 0,
                           .len = r->len,
                           .win = r->win,
                           .wscale = r->wscale,
                           .sack_ok = r->flags & SYN,
                           .forged = r->forged,
                           .useful = !r->useless,
                           .type = r->type,
                           .code = r->code,
                           .quotes = r->quotes};

        if (r->sack) {
            p.n_sack = 1;
            p.sack[0][1] = t->isn[!r->from] + r->sack;
            p.sack[0][0] = p.sack[0][1] - 1;
        }
        t->p[i] = p;
        ck_assert(wire_make(t, i));
        t->n++;
    }
}

static void run(const struct talk *t, struct seen *seen)
{
    moat_judge(t, seen);
    for (unsigned mode = 0; mode < 2; mode++) {
        for (unsigned i = 0; i < t->n; i++) {
            struct kernel_packet k = {.frame = t->bytes + t->p[i].at,
                                      .size = t->p[i].size,
                                      .from_vm = is_vm(t, t->p[i].from)};

            if (mode == CHAIN && seen[i].reason)
                continue;
            seen[i].ovs[mode] = ovs_accepts(t, i);
            kernel_judge(&k, 1);
            seen[i].kernel[mode] = k.accepted;
        }
        ovs_forget();
        kernel_forget();
    }
}

static void print(const struct talk *t, const struct seen *seen)
{
    for (unsigned i = 0; i < t->n; i++)
        fprintf(stderr, "  packet %u: Moat %s%s; Open vSwitch %d %d; kernel %d %d\n", i,
                moat_reason_name(seen[i].reason), seen[i].unbelieved ? " (unbelieved)" : "",
                seen[i].ovs[0], seen[i].ovs[1], seen[i].kernel[0], seen[i].kernel[1]);
}

START_TEST(shows_the_difference)
{
    unsigned c = (unsigned)_i, mode = cases[c].mode, last;
    bool looser = cases[c].difference == LOOSER, ok;
    struct seen seen[TALK_PACKETS];
    struct talk t;
    struct past past;
    int which;

    make(&t, c);
    run(&t, seen);
    last = t.n - 1;
    ok = looser == !seen[last].reason && seen[last].ovs[mode] == !looser &&
         seen[last].kernel[mode] == !looser;
    look_back(&past, &t, seen, last, mode);
    which = find_approved(cases[c].difference, &past);
    if (!ok || which < 0 || strcmp(approved[which].name, cases[c].name))
        print(&t, seen);
    ck_assert_msg(ok, "%s: no difference", cases[c].name);
    ck_assert_msg(which >= 0 && !strcmp(approved[which].name, cases[c].name), "%s: taken for %s",
                  cases[c].name, which < 0 ? "none" : approved[which].name);
}
END_TEST

START_TEST(each_has_a_case)
{
    for (unsigned a = 0; a < n_approved; a++) {
        unsigned n = 0;

        for (unsigned c = 0; c < N_CASES; c++)
            n += !strcmp(approved[a].name, cases[c].name) &&
                 approved[a].difference == cases[c].difference;
        ck_assert_msg(n == 1, "%s: %u cases", approved[a].name, n);
    }
}
END_TEST

/* What nobody approved is found: a packet that fits all, said to be refused. */
START_TEST(nothing_else_is_approved)
{
    static const struct row rows[] = {HANDSHAKE, {C, ACK, 1, 1, 100, 1000}};
    struct seen seen[TALK_PACKETS];
    struct talk t;
    struct past past;

    make(&t, 0);
    t.n = 0;
    for (unsigned i = 0; i < 4; i++) {
        t.p[i].from = rows[i].from;
        t.p[i].flags = rows[i].flags;
        t.p[i].seq = t.isn[rows[i].from] + rows[i].seq;
        t.p[i].ack = rows[i].flags & ACK ? t.isn[!rows[i].from] + rows[i].ack : 0;
        t.p[i].len = rows[i].len;
        ck_assert(wire_make(&t, i));
        t.n++;
    }
    run(&t, seen);
    for (unsigned i = 0; i < t.n; i++)
        ck_assert(!seen[i].reason && seen[i].ovs[CHAIN] && seen[i].kernel[CHAIN] &&
                  seen[i].ovs[SIDE_BY_SIDE] && seen[i].kernel[SIDE_BY_SIDE]);
    look_back(&past, &t, seen, 3, CHAIN);
    ck_assert_int_eq(find_approved(LOOSER, &past), -1);
    look_back(&past, &t, seen, 3, SIDE_BY_SIDE);
    ck_assert_int_eq(find_approved(STRICTER, &past), -1);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("approved");
    TCase *tc = tcase_create("differences");
    SRunner *sr;
    int failed;

    kernel_start();
    tcase_add_loop_test(tc, shows_the_difference, 0, (int)N_CASES);
    tcase_add_test(tc, each_has_a_case);
    tcase_add_test(tc, nothing_else_is_approved);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_set_fork_status(sr, CK_NOFORK); /* the namespace and the trackers are this process' */
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
