/* SPDX-License-Identifier: Apache-2.0 */

/* Fragments as the parser sees them, one by one.  Frames are written as strings
 * (tests/lib/letters.h); a row's patches then change single bytes.  Mutated frames are read by a
 * second, plain reader too: it finds a fragment's place by walking the headers and checks
 * nothing. */

#include "datapath/parse.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/letters.h"
#include "tests/lib/trials.h"

struct row {
    const char *frame;
    uint8_t kind, reason, proto;
    uint8_t frag, more;
    uint16_t at, len, head;
    struct patch patch[4];
    const char *name;
};

/* Bytes behind the header(s) that stay in front, as letters.h builds them. */
enum { TCP = 48, UDP = 32, ECHO = 32, GRE = 24 };

#define OK(KIND, PROTO) .kind = MOAT_PKT_##KIND, .proto = PROTO
#define NO(REASON) .reason = MOAT_R_##REASON
#define WHOLE .frag = 0
#define FIRST(HEAD, LEN) .frag = 1, .more = 1, .len = LEN, .head = HEAD
#define LATER(HEAD, AT, LEN) .frag = 2, .more = 1, .at = AT, .len = LEN, .head = HEAD
#define LAST(HEAD, AT, LEN) .frag = 2, .at = AT, .len = LEN, .head = HEAD
#define PATCH(...) .patch = {__VA_ARGS__}

static const struct row rows[] = {
    /* IPv4 (RFC 791); the offset counts in 8 bytes. */
    {"4t", OK(TCP, 6), FIRST(20, TCP), PATCH({IP, 6, 0x20}), .name = "first"},
    {"4T", OK(TCP, 6), FIRST(20, TCP), PATCH({IP, 6, 0x20}), .name = "first, SYN"},
    {"4ot", OK(TCP, 6), FIRST(28, TCP), PATCH({IP, 6, 0x20}), .name = "first, options"},
    {"4tp", OK(TCP, 6), FIRST(20, TCP), PATCH({IP, 6, 0x20}), .name = "first, padded"},
    {"qv4t", OK(TCP, 6), FIRST(20, TCP), PATCH({IP, 6, 0x20}), .name = "first, tagged"},
    {"4u", OK(UDP, 17), FIRST(20, UDP), PATCH({IP, 6, 0x20}), .name = "first, UDP"},
    {"4u", OK(UDP, 17), FIRST(20, UDP), PATCH({IP, 6, 0x20}, {L4, 4, 9}),
     .name = "first, of a long UDP"},
    {"4u", OK(UDP, 17), FIRST(20, 8), PATCH({IP, 3, 28}, {IP, 6, 0x20}),
     .name = "first, 8 bytes of UDP"},
    {"4u", OK(UDP, 17), FIRST(20, UDP), PATCH({IP, 6, 0x20}, {L4, 0, 0}, {L4, 1, 0}),
     .name = "first, UDP from port 0"},
    {"4i", OK(ICMP_QUERY, 1), FIRST(20, ECHO), PATCH({IP, 6, 0x20}), .name = "first, echo"},
    {"4i", OK(ICMP_QUERY, 1), FIRST(20, 8), PATCH({IP, 3, 28}, {IP, 6, 0x20}),
     .name = "first, 8 bytes of echo"},
    {"4g", OK(IP_OTHER, 47), FIRST(20, GRE), PATCH({IP, 6, 0x20}), .name = "first, GRE"},
    {"4t", OK(IP_OTHER, 6), LAST(20, 80, TCP), PATCH({IP, 7, 10}), .name = "last"},
    {"4t", OK(IP_OTHER, 6), LATER(20, 24, TCP), PATCH({IP, 6, 0x20}, {IP, 7, 3}), .name = "middle"},
    {"4ot", OK(IP_OTHER, 6), LATER(28, 24, TCP), PATCH({IP, 6, 0x20}, {IP, 7, 3}),
     .name = "middle, options"},
    {"4u", OK(IP_OTHER, 17), LAST(20, 8, UDP), PATCH({IP, 7, 1}), .name = "UDP at 8"},
    {"4u", OK(IP_OTHER, 17), LAST(20, 8, 1), PATCH({IP, 3, 21}, {IP, 7, 1}),
     .name = "last, one byte"},
    {"4u", OK(IP_OTHER, 17), LAST(20, 65480, UDP), PATCH({IP, 6, 0x1f}, {IP, 7, 0xf9}),
     .name = "last, near 64 KiB"},
    {"4u", OK(IP_OTHER, 17), LAST(20, 65488, 27), PATCH({IP, 3, 47}, {IP, 6, 0x1f}, {IP, 7, 0xfa}),
     .name = "last, longest"},
    {"4t", OK(TCP, 6), FIRST(20, TCP), PATCH({IP, 6, 0x60}), .name = "don't fragment, first"},
    {"4t", OK(IP_OTHER, 6), LAST(20, 80, TCP), PATCH({IP, 6, 0x40}, {IP, 7, 10}),
     .name = "don't fragment, last"},
    {"4t", OK(IP_OTHER, 6), LAST(20, 80, TCP), PATCH({IP, 6, 0x80}, {IP, 7, 10}),
     .name = "reserved bit, last"},
    {"4t", OK(TCP, 6), WHOLE, PATCH({IP, 6, 0x80}), .name = "reserved bit, whole"},

    /* RFC 1858, RFC 3128: a header in two fragments, or one that is to be overwritten. */
    {"4t", NO(FRAG_TINY), PATCH({IP, 7, 1}), .name = "TCP at 8"},
    {"4t", NO(FRAG_TINY), PATCH({IP, 6, 0x20}, {IP, 7, 1}), .name = "TCP at 8, not the last"},
    {"4t", NO(FRAG_TINY), PATCH({IP, 7, 2}), .name = "TCP at 16"},
    {"4t", NO(FRAG_TINY), PATCH({IP, 3, 28}, {IP, 6, 0x20}), .name = "TCP of 8 bytes"},
    {"4t", NO(FRAG_TINY), PATCH({IP, 3, 36}, {IP, 6, 0x20}), .name = "TCP of 16 bytes"},
    {"4t", NO(FRAG_TINY), PATCH({IP, 6, 0x20}, {L4, 12, 0xf0}), .name = "TCP options cut"},
    {"4t", NO(L4_MALFORMED), PATCH({IP, 6, 0x20}, {L4, 12, 0x40}), .name = "first, data offset 4"},
    {"4u", NO(FRAG_TINY), PATCH({IP, 3, 20}, {IP, 6, 0x20}), .name = "UDP of 0 bytes"},
    {"4i", NO(FRAG_TINY), PATCH({IP, 3, 20}, {IP, 6, 0x20}), .name = "ICMP of 0 bytes"},
    {"4g", NO(FRAG_TINY), PATCH({IP, 3, 20}, {IP, 6, 0x20}), .name = "GRE of 0 bytes"},
    {"4t", NO(TCP_FLAGS), PATCH({IP, 6, 0x20}, {L4, 13, 0}), .name = "first, no flags"},
    {"4t", NO(L4_MALFORMED), PATCH({IP, 6, 0x20}, {L4, 3, 0}), .name = "first, TCP to port 0"},
    {"4u", NO(L4_MALFORMED), PATCH({IP, 6, 0x20}, {L4, 3, 0}), .name = "first, UDP to port 0"},
    {"4u", NO(L4_MALFORMED), PATCH({IP, 6, 0x20}, {L4, 5, 31}),
     .name = "first, UDP length shorter than that"},
    {"4u", NO(L4_MALFORMED), PATCH({IP, 6, 0x20}, {L4, 5, 0}), .name = "first, UDP length 0"},
    {"4ot", NO(IP_OPTIONS), PATCH({IP, 6, 0x20}, {IP, 20, 131}, {IP, 21, 7}),
     .name = "first, source route"},
    {"4ot", NO(IP_OPTIONS), PATCH({IP, 7, 9}, {IP, 20, 131}, {IP, 21, 7}),
     .name = "later, source route"},

    /* Places that cannot be. */
    {"4t", NO(IP_MALFORMED), PATCH({IP, 3, 67}, {IP, 6, 0x20}), .name = "odd length, not the last"},
    {"4u", NO(IP_MALFORMED), PATCH({IP, 3, 20}, {IP, 7, 9}), .name = "later, 0 bytes"},
    {"4u", NO(IP_MALFORMED), PATCH({IP, 3, 20}, {IP, 6, 0x20}, {IP, 7, 9}),
     .name = "later, 0 bytes, not the last"},
    {"4u", NO(FRAG_SIZE), PATCH({IP, 6, 0x1f}, {IP, 7, 0xff}), .name = "beyond 64 KiB"},
    {"4u", NO(FRAG_SIZE), PATCH({IP, 3, 48}, {IP, 6, 0x1f}, {IP, 7, 0xfa}),
     .name = "one byte too long with the header"},
    {"4ou", NO(FRAG_SIZE), PATCH({IP, 3, 48}, {IP, 6, 0x1f}, {IP, 7, 0xfb}),
     .name = "too long with options"},

    /* IPv6 (RFC 8200, section 4.5). */
    {"6Ft", OK(TCP, 6), FIRST(0, TCP), .name = "IPv6 first"},
    {"6hFt", OK(TCP, 6), FIRST(8, TCP), .name = "IPv6 first, behind hop-by-hop"},
    {"6hdRFdt", OK(TCP, 6), FIRST(24, TCP + 8), .name = "IPv6 first, in the order of RFC 8200"},
    {"6Fu", OK(UDP, 17), FIRST(0, UDP), PATCH({L4, 4, 9}), .name = "IPv6 first, of a long UDP"},
    {"6Fdu", OK(UDP, 17), FIRST(0, UDP + 8), .name = "IPv6 first, UDP length without options"},
    {"6Fdi", OK(ICMP_QUERY, 58), FIRST(0, ECHO + 8),
     .name = "IPv6 first, destination options in it"},
    {"6FAt", OK(TCP, 6), FIRST(0, TCP + 16), .name = "IPv6 first, AH in it"},
    {"6Fg", OK(IP_OTHER, 47), FIRST(0, GRE), .name = "IPv6 first, GRE"},
    {"6hLt", OK(IP_OTHER, 6), LAST(8, 80, TCP), .name = "IPv6 later"},
    {"6Ldu", OK(IP_OTHER, 60), LAST(0, 80, UDP + 8),
     .name = "IPv6 later: what it holds is not looked at"},
    {"6Lt", OK(IP_OTHER, 6), LATER(0, 80, TCP), PATCH({EXT, 3, 81}), .name = "IPv6 middle"},
    {"6Lt", OK(IP_OTHER, 6), LAST(0, 80, TCP), PATCH({EXT, 1, 9}, {EXT, 3, 86}),
     .name = "IPv6 later, reserved bits"},
    {"6Lu", OK(IP_OTHER, 0), LAST(0, 80, UDP), PATCH({EXT, 0, 0}),
     .name = "IPv6 later: its next header does not count"},
    {"6Lu", OK(IP_OTHER, 17), LAST(0, 65496, UDP), PATCH({EXT, 2, 0xff}, {EXT, 3, 0xd8}),
     .name = "IPv6 last, near 64 KiB"},

    /* RFC 6946: an atomic fragment is a whole packet. */
    {"60t", OK(TCP, 6), WHOLE, .name = "atomic"},
    {"6h0du", OK(UDP, 17), WHOLE, .name = "atomic between others"},
    {"60u", OK(UDP, 17), WHOLE, PATCH({L4, 5, 8}), .name = "atomic, UDP shorter than it"},
    {"60t", OK(TCP, 6), WHOLE, PATCH({EXT, 3, 6}), .name = "atomic, reserved bits"},
    {"60t", NO(L4_MALFORMED), PATCH({IP, 5, 24}), .name = "atomic, TCP cut"},

    /* RFC 7112: all headers in the first one. */
    {"6Ft", NO(FRAG_TINY), PATCH({IP, 5, 24}), .name = "IPv6 first, TCP of 16 bytes"},
    {"6Ft", NO(FRAG_TINY), PATCH({IP, 5, 8}), .name = "IPv6 first, nothing in it"},
    {"6Fdt", NO(FRAG_TINY), PATCH({IP, 5, 8}), .name = "IPv6 first, no options"},
    {"6Fdt", NO(FRAG_TINY), PATCH({IP, 5, 16}), .name = "IPv6 first, options only"},
    {"6Fdt", NO(FRAG_TINY), PATCH({EXT, 1, 30}), .name = "IPv6 first, options cut"},
    {"6Fdu", NO(FRAG_TINY), PATCH({IP, 5, 16}), .name = "IPv6 first, UDP cut"},
    {"6Fdg", NO(FRAG_TINY), PATCH({IP, 5, 16}), .name = "IPv6 first, GRE cut"},
    {"6Lt", NO(FRAG_TINY), PATCH({EXT, 3, 8}), .name = "IPv6 TCP at 8"},
    {"6FRt", NO(IP_OPTIONS), PATCH({EXT, 2, 0}), .name = "IPv6 first, routing type 0"},
    {"6Fht", NO(IP_MALFORMED), .name = "IPv6 first, hop-by-hop in it"},
    {"6Ft", NO(IP_MALFORMED), PATCH({IP, 5, 7}), .name = "fragment header cut"},

    /* RFC 6980: neighbour discovery is never fragmented. */
    {"6Fi", NO(FRAG), PATCH({L4, 0, 133}), .name = "router solicitation, first"},
    {"6Fi", NO(FRAG), PATCH({L4, 0, 134}), .name = "router advertisement, first"},
    {"60i", NO(FRAG), PATCH({L4, 0, 134}), .name = "router advertisement, atomic"},
    {"60i", NO(FRAG), PATCH({L4, 0, 135}), .name = "neighbour solicitation, atomic"},
    {"60i", NO(FRAG), PATCH({L4, 0, 136}), .name = "neighbour advertisement, atomic"},
    {"6Fdi", NO(FRAG), PATCH({L4, 0, 137}), .name = "redirect, first"},
    {"60i", NO(FRAG), PATCH({L4, 0, 148}), .name = "certification path solicitation, atomic"},
    {"60i", OK(ICMP_OTHER, 58), WHOLE, PATCH({L4, 0, 132}), .name = "MLD, atomic"},
    {"60i", OK(ICMP_OTHER, 58), WHOLE, PATCH({L4, 0, 138}), .name = "renumbering, atomic"},
    {"6Fi", OK(ICMP_ERROR, 58), FIRST(0, ECHO), PATCH({L4, 0, 1}), .name = "ICMPv6 error, first"},

    /* Fragments of fragments. */
    {"6FFt", NO(FRAG), .name = "nested"},
    {"6FLt", NO(FRAG), .name = "nested, later"},
    {"6FdFt", NO(FRAG), .name = "nested behind options"},
    {"6F0t", NO(FRAG), .name = "nested, atomic inside"},
    {"60Ft", NO(FRAG), .name = "nested, atomic outside"},
    {"600t", NO(FRAG), .name = "nested, both atomic"},
    {"60dLt", NO(FRAG), .name = "nested, later in atomic"},
    {"6Lt", NO(FRAG), PATCH({EXT, 0, 44}), .name = "nested, seen from a later one"},

    {"6Ft", NO(IP_MALFORMED), PATCH({IP, 5, 55}), .name = "IPv6 odd length, not the last"},
    {"6Lt", NO(IP_MALFORMED), PATCH({IP, 5, 8}), .name = "IPv6 later, 0 bytes"},
    {"6Lt", NO(FRAG_SIZE), PATCH({EXT, 2, 0xff}, {EXT, 3, 0xf8}), .name = "IPv6 beyond 64 KiB"},
    {"6Lu", NO(FRAG_SIZE), PATCH({EXT, 2, 0xff}, {EXT, 3, 0xe0}), .name = "IPv6 one byte too long"},
    {"6hLu", NO(FRAG_SIZE), PATCH({EXT, 2, 0xff}, {EXT, 3, 0xd8}),
     .name = "IPv6 too long with hop-by-hop"},
};

#define N_ROWS (sizeof rows / sizeof *rows)

static void build_row(struct frame *f, const struct row *r)
{
    frame_spell(f, r->frame, false);
    f->data[f->ip_off + 4] = f->family == 4 ? 0xab : f->data[f->ip_off + 4];
    f->data[f->ip_off + 5] = f->family == 4 ? 0xcd : f->data[f->ip_off + 5];
    frame_patch(f, r->patch);
}

/* What holds of every fragment that is not refused. */
static void check_place(const struct moat_pkt *p)
{
    if (p->kind == MOAT_PKT_BAD)
        return;
    if (!p->frag) {
        ck_assert(!p->frag_more && !p->frag_id && !p->frag_at && !p->frag_len && !p->frag_head);
        return;
    }
    ck_assert_uint_eq(p->frag, p->frag_at ? 2 : 1);
    ck_assert(p->frag_at || p->frag_more);
    ck_assert_uint_gt(p->frag_len, 0);
    ck_assert_uint_eq(p->frag_at % 8, 0);
    ck_assert(!p->frag_more || p->frag_len % 8 == 0);
    ck_assert_uint_le(p->frag_head + p->frag_at + p->frag_len, 65535);
    ck_assert_uint_le(p->l3_off + p->frag_head + p->frag_len, p->total);
    if (p->frag == 2)
        ck_assert(p->kind == MOAT_PKT_IP_OTHER && !p->sport && !p->dport);
    if (p->kind == MOAT_PKT_TCP)
        ck_assert_uint_le(p->tcp.len + 20, p->frag_len);
}

static void parse_copy(const uint8_t *data, uint32_t len, uint32_t total, struct moat_pkt *p)
{
    uint8_t *exact = malloc(len ? len : 1);

    ck_assert_ptr_nonnull(exact);
    memcpy(exact, data, len);
    p->data = len ? exact : exact + 1;
    p->len = len;
    p->total = total;
    moat_parse(p);
    check_place(p);
    free(exact);
}

START_TEST(frames)
{
    const struct row *r = &rows[_i];
    struct moat_pkt p;
    struct frame f;

    build_row(&f, r);
    parse_copy(f.data, f.len, f.len, &p);
    ck_assert_msg(p.reason == r->reason, "%s: %s, not %s", r->name, moat_reason_name(p.reason),
                  moat_reason_name(r->reason));
    ck_assert_msg(p.kind == r->kind, "%s: kind %d", r->name, p.kind);
    if (r->reason)
        return;
    ck_assert_uint_eq(p.proto, r->proto);
    ck_assert_msg(p.frag == r->frag, "%s: fragment %d", r->name, p.frag);
    ck_assert_uint_eq(p.frag_more, r->more);
    ck_assert_uint_eq(p.frag_at, r->at);
    ck_assert_msg(p.frag_len == r->len, "%s: %u bytes", r->name, p.frag_len);
    ck_assert_uint_eq(p.frag_head, r->head);
    ck_assert_uint_eq(p.frag_id, !r->frag ? 0 : f.family == 4 ? 0xabcd : 1);
    if (p.kind == MOAT_PKT_TCP || p.kind == MOAT_PKT_UDP) {
        ck_assert_uint_eq(p.sport, f.data[f.l4_off + 1] ? 1000 : 0);
        ck_assert_uint_eq(p.dport, p.kind == MOAT_PKT_TCP ? 80 : 53);
        ck_assert_uint_eq(p.l4_off, f.l4_off);
    }
}
END_TEST

/* Truncated at every byte: the same answer, or a refusal. */
START_TEST(truncated_frames)
{
    struct moat_pkt whole, cut;
    struct frame f;

    for (size_t i = 0; i < N_ROWS; i++) {
        build_row(&f, &rows[i]);
        parse_copy(f.data, f.len, f.len, &whole);
        for (uint32_t n = 0; n < f.len; n++) {
            for (int ends = 0; ends < 2; ends++) {
                parse_copy(f.data, n, ends ? n : f.len, &cut);
                if (whole.kind != MOAT_PKT_BAD)
                    ck_assert(cut.kind == whole.kind || cut.kind == MOAT_PKT_BAD);
                if (cut.kind != MOAT_PKT_BAD)
                    ck_assert(cut.frag_at == whole.frag_at && cut.frag_len == whole.frag_len &&
                              cut.frag_more == whole.frag_more && cut.frag_id == whole.frag_id);
            }
        }
    }
}
END_TEST

/* --- the plain reader --- */

struct place {
    bool fragment;
    uint32_t at, len, head, id;
    bool more;
};

static uint32_t number(const uint8_t *p, int n)
{
    uint32_t v = 0;

    while (n--)
        v = v << 8 | *p++;
    return v;
}

static struct place read_ip4(const uint8_t *ip)
{
    uint32_t header = (ip[0] & 15) * 4u, field = number(ip + 6, 2);

    return (struct place){.fragment = field & 0x3fff,
                          .at = field % 8192 * 8,
                          .more = field / 8192 % 2,
                          .len = number(ip + 2, 2) - header,
                          .head = header,
                          .id = number(ip + 4, 2)};
}

static struct place read_ip6(const uint8_t *ip)
{
    const uint8_t *h = ip + 40;
    uint8_t next = ip[6];

    while (next == 0 || next == 43 || next == 60 || next == 51 || next == 135 || next == 139 ||
           next == 140) {
        uint32_t size = next == 51 ? 8 + 4u * h[1] : 8 + 8u * h[1];

        next = *h;
        h += size;
    }
    if (next != 44 || number(h + 2, 2) / 8 * 8 + h[3] % 2 == 0)
        return (struct place){.fragment = false};
    return (struct place){.fragment = true,
                          .at = number(h + 2, 2) / 8 * 8,
                          .more = h[3] % 2,
                          .len = 40 + number(ip + 4, 2) - (uint32_t)(h + 8 - ip),
                          .head = (uint32_t)(h - ip) - 40,
                          .id = number(h + 4, 4)};
}

START_TEST(random_frames)
{
    unsigned good[3] = {0}, bad = 0;

    srandom(5);
    for (int i = 0; i < TRIALS(300000); i++) {
        struct moat_pkt p;
        struct place want = {0};
        struct frame f;
        uint32_t len, span;

        build_row(&f, &rows[(size_t)random() % N_ROWS]);
        span = random() % 4 ? f.l4_off + 16 : f.len;
        if (span > f.len)
            span = f.len;
        for (long n = random() % 3; n >= 0; n--)
            f.data[(uint32_t)random() % span] = (uint8_t)(random() % 3 ? random() : random() % 64);
        len = random() % 4 ? f.len : (uint32_t)random() % (f.len + 1);
        parse_copy(f.data, len, random() % 2 ? len : f.len + (uint32_t)random() % 2000, &p);
        if (p.kind == MOAT_PKT_BAD) {
            bad++;
            continue;
        }
        good[p.frag]++;
        if (p.family == MOAT_FAM_IP4)
            want = read_ip4(f.data + p.l3_off);
        else if (p.family == MOAT_FAM_IP6)
            want = read_ip6(f.data + p.l3_off);
        ck_assert_uint_eq(p.frag != 0, want.fragment);
        if (!want.fragment)
            continue;
        ck_assert_uint_eq(p.frag_at, want.at);
        ck_assert_uint_eq(p.frag_len, want.len);
        ck_assert_uint_eq(p.frag_more, want.more);
        ck_assert_uint_eq(p.frag_head, want.head);
        ck_assert_uint_eq(p.frag_id, want.id);
    }
    ck_assert_uint_gt(bad, TRIALS(100000));
    for (int i = 0; i < 3; i++)
        ck_assert_uint_gt(good[i], TRIALS(10000));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("parse_fragment");
    TCase *tc = tcase_create("fragments");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, frames, 0, (int)N_ROWS);
    tcase_add_test(tc, truncated_frames);
    tcase_add_test(tc, random_frames);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
