/* SPDX-License-Identifier: Apache-2.0 */

/* Frames are written as strings (tests/lib/letters.h); a row's patches then change single bytes
 * of it.  Fragments are in test_parse_fragment.c. */

#include "datapath/parse.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/letters.h"
#include "tests/lib/trials.h"

struct row {
    const char *frame;
    uint8_t kind, reason, proto;
    uint8_t icmp_type, icmp_base, icmp_reply;
    struct patch patch[4];
    const char *name;
};

#define OK(KIND, PROTO) .kind = MOAT_PKT_##KIND, .proto = PROTO
#define NO(REASON) .reason = MOAT_R_##REASON
#define PATCH(...) .patch = {__VA_ARGS__}

static const struct row rows[] = {
    /* Layer 2. */
    {"4t", OK(TCP, 6), .name = "plain IPv4 TCP"},
    {"4u", OK(UDP, 17), .name = "plain IPv4 UDP"},
    {"4i", OK(ICMP_QUERY, 1), .icmp_type = 8, .icmp_base = 8, .name = "plain IPv4 echo"},
    {"4g", OK(IP_OTHER, 47), .name = "plain IPv4 GRE"},
    {"6t", OK(TCP, 6), .name = "plain IPv6 TCP"},
    {"6u", OK(UDP, 17), .name = "plain IPv6 UDP"},
    {"6i", OK(ICMP_QUERY, 58), .icmp_type = 128, .icmp_base = 128, .name = "plain IPv6 echo"},
    {"6g", OK(IP_OTHER, 47), .name = "plain IPv6 GRE"},
    {"v4t", OK(TCP, 6), .name = "802.1Q"},
    {"q4u", OK(UDP, 17), .name = "802.1ad"},
    {"qv6t", OK(TCP, 6), .name = "QinQ"},
    {"vv4t", OK(TCP, 6), .name = "two 802.1Q tags"},
    {"qva", OK(ARP, 0), .name = "QinQ ARP"},
    {"qvv4t", NO(VLAN), .name = "three tags"},
    {"a", OK(ARP, 0), .name = "ARP"},
    {"r", OK(RARP, 0), .name = "RARP"},
    {"a", NO(L2_TYPE), PATCH({ETH, 15, 6}), .name = "ARP, other hardware"},
    {"a", NO(L2_TYPE), PATCH({ETH, 17, 1}), .name = "ARP, other protocol"},
    {"a", NO(L2_TYPE), PATCH({ETH, 19, 16}), .name = "ARP, protocol length"},
    {"x", NO(L2_TYPE), .name = "unknown ethertype"},
    {"x", NO(L2_TYPE), PATCH({ETH, 12, 0}, {ETH, 13, 46}), .name = "802.3 length"},

    /* IPv4 header. */
    {"4tp", OK(TCP, 6), .name = "padding"},
    {"4us", OK(UDP, 17), .name = "padded to the minimum"},
    {"4ot", OK(TCP, 6), .name = "options"},
    {"4oi", OK(ICMP_QUERY, 1), .icmp_type = 8, .icmp_base = 8, .name = "options, echo"},
    {"4ot", OK(TCP, 6), PATCH({IP, 20, 148}, {IP, 21, 4}), .name = "router alert"},
    {"4ot", OK(TCP, 6), PATCH({IP, 20, 7}, {IP, 21, 7}), .name = "record route"},
    {"4ot", OK(TCP, 6), PATCH({IP, 20, 0}, {IP, 21, 131}), .name = "nothing counts behind the end"},
    {"4ot", NO(IP_OPTIONS), PATCH({IP, 20, 131}, {IP, 21, 7}), .name = "loose source route"},
    {"4ot", NO(IP_OPTIONS), PATCH({IP, 21, 137}, {IP, 22, 7}), .name = "strict source route"},
    {"4ot", NO(IP_OPTIONS), PATCH({IP, 20, 148}, {IP, 21, 4}, {IP, 24, 131}, {IP, 25, 4}),
     .name = "source route behind an option"},
    {"4t", NO(IP_MALFORMED), PATCH({IP, 0, 0x55}), .name = "version 5"},
    {"4t", NO(IP_MALFORMED), PATCH({IP, 0, 0x65}), .name = "version 6 as IPv4"},
    {"6t", NO(IP_MALFORMED), PATCH({IP, 0, 0x45}), .name = "version 4 as IPv6"},
    {"4t", NO(IP_MALFORMED), PATCH({IP, 0, 0x44}), .name = "header of 16"},
    {"4t", NO(IP_MALFORMED), PATCH({IP, 3, 19}), .name = "total length below the header"},
    {"4ot", NO(IP_MALFORMED), PATCH({IP, 3, 27}), .name = "total length inside the options"},
    {"4t", NO(IP_MALFORMED), PATCH({IP, 3, 69}), .name = "total length beyond the frame"},
    {"4t", NO(IP_MALFORMED), PATCH({IP, 2, 0}, {IP, 3, 0}), .name = "total length 0"},
    {"4t", NO(L4_MALFORMED), PATCH({IP, 3, 39}), .name = "total length inside TCP"},
    {"4t", NO(IP_MALFORMED), PATCH({IP, 12, 224}), .name = "multicast source"},
    {"4t", NO(IP_MALFORMED), PATCH({IP, 12, 255}), .name = "broadcast source"},
    {"4u", OK(UDP, 17), PATCH({IP, 12, 0}, {IP, 15, 0}), .name = "no source, as DHCP"},
    {"4t", OK(TCP, 6), PATCH({IP, 6, 0x40}), .name = "don't fragment"},

    /* IPv6 header and extension headers. */
    {"6tp", OK(TCP, 6), .name = "IPv6 padding"},
    {"6t", NO(IP_MALFORMED), PATCH({IP, 5, 49}), .name = "payload beyond the frame"},
    {"6t", NO(L4_MALFORMED), PATCH({IP, 5, 19}), .name = "payload inside TCP"},
    {"6ht", NO(IP_MALFORMED), PATCH({IP, 5, 0}), .name = "jumbogram"},
    {"6t", NO(IP_MALFORMED), PATCH({IP, 8, 0xff}), .name = "multicast source, IPv6"},
    {"6ht", OK(TCP, 6), .name = "hop-by-hop"},
    {"6hi", OK(ICMP_QUERY, 58), .icmp_type = 128, .icmp_base = 128, .name = "hop-by-hop, echo"},
    {"6du", OK(UDP, 17), .name = "destination options"},
    {"6Rt", OK(TCP, 6), .name = "routing, none left"},
    {"6hdRdt", OK(TCP, 6), .name = "the order of RFC 8200"},
    {"6dRRdAt", OK(TCP, 6), .name = "any order"},
    {"6At", OK(TCP, 6), .name = "AH"},
    {"6mg", OK(IP_OTHER, 47), .name = "mobility"},
    {"6g", OK(IP_OTHER, 59), PATCH({IP, 6, 59}), .name = "no next header"},
    {"6g", OK(IP_OTHER, 1), PATCH({IP, 6, 1}), .name = "ICMP over IPv6"},
    {"4g", OK(IP_OTHER, 58), PATCH({IP, 9, 58}), .name = "ICMPv6 over IPv4"},
    {"4g", OK(IP_OTHER, 44), PATCH({IP, 9, 44}), .name = "no extensions in IPv4"},
    {"6dht", NO(IP_MALFORMED), .name = "hop-by-hop not first"},
    {"6hht", NO(IP_MALFORMED), .name = "hop-by-hop twice"},
    {"6Rt", NO(IP_OPTIONS), PATCH({EXT, 2, 0}), .name = "routing type 0"},
    {"6Rt", NO(IP_OPTIONS), PATCH({EXT, 3, 1}), .name = "routing, one left"},
    {"6dt", NO(IP_MALFORMED), PATCH({EXT, 1, 7}), .name = "extension beyond the packet"},
    {"6dt", NO(L4_MALFORMED), PATCH({EXT, 1, 6}, {EXT, 2, 1}, {EXT, 3, 52}),
     .name = "extension to the very end"},
    {"6Rt", OK(TCP, 6), PATCH({EXT, 2, 4}), .name = "segment routing, none left"},
    {"6Rt", NO(IP_OPTIONS), PATCH({EXT, 2, 4}, {EXT, 3, 2}), .name = "segment routing, two left"},
    {"6At", NO(IP_MALFORMED), PATCH({EXT, 1, 0}), .name = "AH of 8 bytes"},
    {"6ht", OK(TCP, 6), PATCH({EXT, 2, 5}, {EXT, 3, 2}), .name = "router alert, IPv6"},
    {"6dt", OK(TCP, 6), PATCH({EXT, 2, 1}, {EXT, 3, 4}), .name = "option to the end"},
    {"6dt", NO(IP_MALFORMED), PATCH({EXT, 2, 1}, {EXT, 3, 5}), .name = "option beyond the end"},
    {"6dt", NO(IP_MALFORMED), PATCH({EXT, 7, 1}), .name = "option without a length"},
    {"6ht", NO(IP_MALFORMED), PATCH({EXT, 2, 0xc2}, {EXT, 3, 4}), .name = "jumbo payload option"},
    {"6ht", NO(IP_MALFORMED), PATCH({EXT, 2, 1}, {EXT, 3, 0}, {EXT, 4, 0xc2}, {EXT, 5, 2}),
     .name = "jumbo payload option behind another"},
    {"6dt", NO(IP_OPTIONS), PATCH({EXT, 2, 0xc9}, {EXT, 3, 4}), .name = "home address"},
    {"6Ht", OK(TCP, 6), .name = "HIP before TCP"},
    {"6Su", OK(UDP, 17), .name = "Shim6 before UDP"},
    {"6mg", OK(IP_OTHER, 135), PATCH({EXT, 0, 59}), .name = "mobility, nothing follows"},
    {"6Hg", OK(IP_OTHER, 139), PATCH({EXT, 0, 59}), .name = "HIP, nothing follows"},
    {"6Sdg", OK(IP_OTHER, 140), PATCH({EXT, 0, 59}), .name = "Shim6, options, nothing follows"},
    {"6dg", OK(IP_OTHER, 59), PATCH({EXT, 0, 59}), .name = "options, nothing follows"},
    {"6g", OK(IP_OTHER, 50), PATCH({IP, 6, 50}), .name = "ESP"},
    {"6dg", OK(IP_OTHER, 50), PATCH({EXT, 0, 50}), .name = "options, ESP"},
    {"6g", OK(IP_OTHER, 253), PATCH({IP, 6, 253}), .name = "experiment"},
    {"6g", OK(IP_OTHER, 254), PATCH({IP, 6, 254}), .name = "another experiment"},
    {"6g", OK(IP_OTHER, 201), PATCH({IP, 6, 201}), .name = "unknown next header"},
    {"6dmRdHdSAt", OK(TCP, 6), .name = "all of them"},
    {"6dddddddt", OK(TCP, 6), .name = "seven extensions"},
    {"6ddddddddt", OK(TCP, 6), .name = "eight extensions"},
    {"6dddddddddt", NO(IP_MALFORMED), .name = "nine extensions"},

    /* TCP. */
    {"4T", OK(TCP, 6), .name = "SYN"},
    {"4t", OK(TCP, 6), PATCH({L4, 13, 0x12}), .name = "SYN|ACK"},
    {"4t", OK(TCP, 6), PATCH({L4, 13, 0x11}), .name = "FIN|ACK"},
    {"4t", OK(TCP, 6), PATCH({L4, 13, 0x04}), .name = "RST"},
    {"4t", OK(TCP, 6), PATCH({L4, 13, 0x14}), .name = "RST|ACK"},
    {"4t", OK(TCP, 6), PATCH({L4, 13, 0xf8}), .name = "PSH|ACK|URG with ECN"},
    {"4t", NO(TCP_FLAGS), PATCH({L4, 13, 0}), .name = "no flags"},
    {"4t", NO(TCP_FLAGS), PATCH({L4, 13, 0x01}), .name = "FIN alone"},
    {"4t", NO(TCP_FLAGS), PATCH({L4, 13, 0x08}), .name = "PSH alone"},
    {"6t", NO(TCP_FLAGS), PATCH({L4, 13, 0x29}), .name = "FIN|PSH|URG"},
    {"4t", NO(TCP_FLAGS), PATCH({L4, 13, 0x03}), .name = "SYN|FIN"},
    {"4t", NO(TCP_FLAGS), PATCH({L4, 13, 0x06}), .name = "SYN|RST"},
    {"6t", NO(TCP_FLAGS), PATCH({L4, 13, 0x15}), .name = "RST|FIN"},
    {"4t", NO(TCP_FLAGS), PATCH({L4, 13, 0x34}), .name = "RST|URG"},
    {"4t", NO(TCP_FLAGS), PATCH({L4, 13, 0x32}), .name = "SYN|ACK|URG"},
    {"4t", NO(TCP_FLAGS), PATCH({L4, 13, 0x3f}), .name = "all flags"},
    {"4t", OK(TCP, 6), PATCH({L4, 12, 0xc0}), .name = "header to the very end"},
    {"4t", NO(L4_MALFORMED), PATCH({L4, 12, 0x40}), .name = "data offset 4"},
    {"4t", NO(L4_MALFORMED), PATCH({L4, 12, 0xd0}), .name = "data offset beyond the packet"},
    {"4tp", NO(L4_MALFORMED), PATCH({L4, 12, 0xd0}), .name = "data offset into the padding"},
    {"4t", NO(L4_MALFORMED), PATCH({L4, 0, 0}, {L4, 1, 0}), .name = "from port 0"},
    {"6t", NO(L4_MALFORMED), PATCH({L4, 3, 0}), .name = "to port 0"},

    /* UDP. */
    {"4u", OK(UDP, 17), PATCH({L4, 5, 8}), .name = "UDP shorter than the packet"},
    {"4u", OK(UDP, 17), PATCH({L4, 0, 0}, {L4, 1, 0}), .name = "UDP from port 0"},
    {"4u", NO(L4_MALFORMED), PATCH({L4, 3, 0}), .name = "UDP to port 0"},
    {"4u", NO(L4_MALFORMED), PATCH({L4, 5, 7}), .name = "UDP length 7"},
    {"6u", NO(L4_MALFORMED), PATCH({L4, 5, 0}), .name = "UDP length 0"},
    {"6u", NO(L4_MALFORMED), PATCH({L4, 5, 33}), .name = "UDP beyond the packet"},
    {"4u", NO(L4_MALFORMED), PATCH({IP, 3, 27}), .name = "UDP of 7 bytes"},

    /* ICMP. */
    {"4i", OK(ICMP_QUERY, 1), .icmp_type = 0, .icmp_base = 8, .icmp_reply = 1, PATCH({L4, 0, 0}),
     .name = "echo reply"},
    {"4i", OK(ICMP_QUERY, 1), .icmp_type = 13, .icmp_base = 13, PATCH({L4, 0, 13}),
     .name = "timestamp"},
    {"4i", OK(ICMP_QUERY, 1), .icmp_type = 14, .icmp_base = 13, .icmp_reply = 1, PATCH({L4, 0, 14}),
     .name = "timestamp reply"},
    {"6i", OK(ICMP_QUERY, 58), .icmp_type = 129, .icmp_base = 128, .icmp_reply = 1,
     PATCH({L4, 0, 129}), .name = "IPv6 echo reply"},
    {"4i", OK(ICMP_ERROR, 1), .icmp_type = 3, PATCH({L4, 0, 3}), .name = "unreachable"},
    {"4i", OK(ICMP_ERROR, 1), .icmp_type = 11, PATCH({L4, 0, 11}), .name = "time exceeded"},
    {"6i", OK(ICMP_ERROR, 58), .icmp_type = 2, PATCH({L4, 0, 2}), .name = "packet too big"},
    {"4i", OK(ICMP_OTHER, 1), .icmp_type = 5, PATCH({L4, 0, 5}), .name = "redirect"},
    {"6i", OK(ICMP_OTHER, 58), .icmp_type = 0, PATCH({L4, 0, 0}), .name = "ICMPv6 type 0"},
    {"6i", OK(ICMP_OTHER, 58), .icmp_type = 8, PATCH({L4, 0, 8}), .name = "ICMPv6 type 8"},
    {"6i", OK(ICMP_OTHER, 58), .icmp_type = 134, PATCH({L4, 0, 134}), .name = "router advert"},
    {"4i", NO(L4_MALFORMED), PATCH({L4, 1, 9}), .name = "echo with a code"},
    {"4i", NO(L4_MALFORMED), PATCH({IP, 3, 27}), .name = "echo of 7 bytes"},
    {"6i", NO(L4_MALFORMED), PATCH({IP, 5, 3}), .name = "ICMPv6 of 3 bytes"},
};

#define N_ROWS (sizeof rows / sizeof *rows)

static void build_row(struct frame *f, const struct row *r)
{
    frame_spell(f, r->frame, false);
    frame_patch(f, r->patch);
}

static bool within(const struct moat_pkt *p, const uint8_t *at, unsigned n)
{
    return at >= p->data && at + n <= p->data + p->len;
}

/* What holds for every packet that was parsed, good or bad. */
static void check_sound(const struct moat_pkt *p)
{
    struct moat_flow flow;
    struct moat_pkt q;

    ck_assert_uint_eq(p->kind == MOAT_PKT_BAD, p->reason != MOAT_R_NONE);
    if (moat_parse_quoted(p, &q)) {
        unsigned n = q.family == MOAT_FAM_IP6 ? 16 : 4;

        ck_assert_uint_eq(p->kind, MOAT_PKT_ICMP_ERROR);
        ck_assert_uint_eq(q.family, p->family);
        ck_assert(q.kind == MOAT_PKT_TCP || q.kind == MOAT_PKT_UDP ||
                  q.kind == MOAT_PKT_ICMP_QUERY || q.kind == MOAT_PKT_IP_OTHER);
        ck_assert(within(&q, q.src, n) && within(&q, q.dst, n));
        ck_assert_mem_eq(q.src, p->dst, n);
    }
    if (p->kind == MOAT_PKT_BAD)
        return;
    ck_assert(p->family == 4 || p->family == 6 || p->family == MOAT_FAM_ARP);
    ck_assert(within(p, p->src, p->family == 6 ? 16 : 4));
    ck_assert(within(p, p->dst, p->family == 6 ? 16 : 4));
    ck_assert_uint_le(p->l4_off, p->len);
    moat_pkt_flow(p, MOAT_FROM_VM, &flow);
}

START_TEST(frames)
{
    const struct row *r = &rows[_i];
    struct frame f;
    struct moat_pkt p = {.data = f.data};
    const char *ip = strpbrk(r->frame, "46");
    bool ports = r->kind == MOAT_PKT_TCP || r->kind == MOAT_PKT_UDP;

    build_row(&f, r);
    p.len = p.total = f.len;
    moat_parse(&p);
    ck_assert_msg(p.reason == r->reason, "%s: %s, not %s", r->name, moat_reason_name(p.reason),
                  moat_reason_name(r->reason));
    ck_assert_msg(p.kind == r->kind, "%s: kind %d", r->name, p.kind);
    check_sound(&p);
    if (r->reason != MOAT_R_VLAN)
        ck_assert_uint_eq(p.ethertype, f.data[f.type_off] << 8 | f.data[f.type_off + 1]);
    if (r->reason)
        return;
    ck_assert_uint_eq(p.family, ip ? (unsigned)(*ip - '0') : MOAT_FAM_ARP);
    ck_assert_uint_eq(p.proto, r->proto);
    ck_assert_uint_eq(p.frag, 0);
    ck_assert_uint_eq(p.icmp_type, r->icmp_type);
    ck_assert_uint_eq(p.icmp_base, r->icmp_base);
    ck_assert_uint_eq(p.icmp_reply, r->icmp_reply);
    ck_assert_uint_eq(p.icmp_id, r->kind == MOAT_PKT_ICMP_QUERY ? 7 : 0);
    ck_assert_uint_eq(p.dport, !ports ? 0 : r->kind == MOAT_PKT_TCP ? 80 : 53);
    ck_assert_uint_eq(p.sport, ports && f.data[f.l4_off + 1] ? 1000 : 0);
    ck_assert_uint_eq(p.l3_off, f.type_off + 2);
    ck_assert_uint_eq(p.n_tags, (f.type_off - 12) / 4);
    ck_assert_uint_eq(p.vlan, *r->frame == 'v' ? 100 : *r->frame == 'q' ? 200 : 0);
    if (ports || r->kind == MOAT_PKT_ICMP_QUERY)
        ck_assert_uint_eq(p.l4_off, f.l4_off);
}
END_TEST

static void parse_copy(const uint8_t *data, uint32_t len, uint32_t total, struct moat_pkt *p)
{
    uint8_t *exact = malloc(len ? len : 1);

    ck_assert_ptr_nonnull(exact);
    memcpy(exact, data, len);
    /* Of no bytes none may be read; malloc(0) would be a byte that may. */
    p->data = len ? exact : exact + 1;
    p->len = len;
    p->total = total;
    moat_parse(p);
    check_sound(p);
    free(exact);
}

/* Truncated at every byte, of a frame that is segmented there and of one that ends there:
 * the answer is the whole frame's or a refusal, and a refusal if ports are missing. */
static void truncate_row(const struct row *r)
{
    struct frame f;
    struct moat_pkt whole, cut;

    build_row(&f, r);
    parse_copy(f.data, f.len, f.len, &whole);
    for (uint32_t n = 0; n < f.len; n++) {
        for (int ends = 0; ends < 2; ends++) {
            parse_copy(f.data, n, ends ? n : f.len, &cut);
            if (whole.kind != MOAT_PKT_BAD)
                ck_assert(cut.kind == whole.kind || cut.kind == MOAT_PKT_BAD);
            if (whole.sport && n < whole.l4_off + 8u)
                ck_assert_uint_eq(cut.kind, MOAT_PKT_BAD);
            if (cut.kind == MOAT_PKT_TCP)
                ck_assert_uint_eq(cut.tcp.len, whole.tcp.len);
        }
    }
}

START_TEST(truncated_frames)
{
    for (size_t i = 0; i < N_ROWS; i++)
        truncate_row(&rows[i]);
}
END_TEST

START_TEST(random_frames)
{
    struct frame f;
    struct moat_pkt p;
    unsigned good = 0;

    srandom(3);
    for (int i = 0; i < TRIALS(200000); i++) {
        uint32_t len, span;

        build_row(&f, &rows[(size_t)random() % N_ROWS]);
        span = random() % 4 ? f.len : f.l4_off + 20;
        if (span > f.len)
            span = f.len;
        for (long n = random() % 4; n >= 0; n--)
            f.data[(uint32_t)random() % span] = (uint8_t)(random() % 3 ? random() : random() % 4);
        len = random() % 4 ? f.len : (uint32_t)random() % (f.len + 1);
        parse_copy(f.data, len, random() % 2 ? len : f.len + (uint32_t)random() % 2000, &p);
        good += p.kind != MOAT_PKT_BAD;
    }
    ck_assert_uint_gt(good, TRIALS(20000));
    ck_assert_uint_lt(good, 180000);
}
END_TEST

START_TEST(tcp_fields)
{
    static const struct {
        uint8_t option[8];
        uint8_t wscale;
    } scales[] = {
        {{3, 3, 5}, 0x85},
        {{3, 3, 0}, 0x80},
        {{3, 3, 14}, 0x8e},
        {{3, 3, 15}, 0x8e},
        {{3, 3, 255}, 0x8e},
        {{1, 1, 1, 1, 1, 3, 3, 9}, 0x89},
        {{2, 4, 5, 0xb4, 1, 3, 3, 8}, 0x88},
        {{0, 3, 3, 5}, 0},
        {{3, 2, 5, 0}, 0},
        {{3, 4, 5, 0}, 0},
        {{2, 0, 3, 3, 7}, 0},
        {{2, 1, 3, 3, 7}, 0},
        {{2, 9, 3, 3, 7}, 0},
        {{1, 1, 1, 1, 1, 1, 3, 3}, 0},
        {{1, 1, 1, 1, 1, 1, 1, 3}, 0},
    };
    struct frame f;
    struct moat_pkt p;

    frame_spell(&f, "4T", false);
    parse_copy(f.data, f.len, f.len, &p);
    ck_assert_uint_eq(p.tcp.seq, 0x01020304);
    ck_assert_uint_eq(p.tcp.len, 24);
    ck_assert_uint_eq(p.tcp.win, 500);
    ck_assert_uint_eq(p.tcp.flags, MOAT_TCP_SYN);
    ck_assert_uint_eq(p.tcp.wscale, 0x87);
    f.data[f.l4_off + 13] = MOAT_TCP_ACK; /* only a SYN's counts */
    parse_copy(f.data, f.len, f.len, &p);
    ck_assert_uint_eq(p.tcp.wscale, 0);

    frame_spell(&f, "6htp", false);
    parse_copy(f.data, f.len - 20, f.len, &p); /* segmented behind the header */
    ck_assert_uint_eq(p.tcp.ack, 0x05060708);
    ck_assert_uint_eq(p.tcp.len, 28); /* without padding */

    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) {
        frame_spell(&f, "4T", false);
        f.data[f.l4_off + 12] = 7 << 4;
        memcpy(f.data + f.l4_off + 20, scales[i].option, 8);
        parse_copy(f.data, f.l4_off + 28, f.len, &p);
        ck_assert_msg(p.tcp.wscale == scales[i].wscale, "option %zu: %x", i, p.tcp.wscale);
    }
}
END_TEST

/* A tag of VLAN 0 is a priority: the VLAN is in the next one. */
START_TEST(priority_tags)
{
    static const struct {
        const char *frame;
        uint16_t tci[2], vlan;
    } table[] = {
        {"v4t", {0x0005, 0}, 5},       {"v4t", {0xe000, 0}, 0},       {"v4t", {0xefff, 0}, 0xfff},
        {"vv4t", {0x0005, 0x0006}, 5}, {"vv4t", {0xe000, 0x2006}, 6}, {"qv4t", {0x6000, 0xe007}, 7},
        {"qv6u", {0x6000, 0xe000}, 0},
    };

    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct moat_pkt p;
        struct frame f;

        frame_spell(&f, table[i].frame, false);
        for (unsigned t = 0; t < 2 && strchr("vq", table[i].frame[t]); t++) {
            f.data[14 + 4 * t] = (uint8_t)(table[i].tci[t] >> 8);
            f.data[15 + 4 * t] = (uint8_t)table[i].tci[t];
        }
        parse_copy(f.data, f.len, f.len, &p);
        ck_assert_uint_eq(p.reason, MOAT_R_NONE);
        ck_assert_msg(p.vlan == table[i].vlan, "%zu: %u", i, p.vlan);
    }
}
END_TEST

/* What the ethertype is, when it is known. */
START_TEST(ethertypes)
{
    static const struct {
        const char *frame;
        uint16_t shown, type;
        uint8_t n_tags, reason;
    } table[] = {
        {"x", 14, 0x88cc, 0, MOAT_R_L2_TYPE},       {"x", 13, 0, 0, MOAT_R_L2_SHORT},
        {"vx", 18, 0x88cc, 1, MOAT_R_L2_TYPE},      {"vx", 17, 0, 0, MOAT_R_L2_SHORT},
        {"qvx", 22, 0x88cc, 2, MOAT_R_L2_TYPE},     {"qvx", 21, 0, 1, MOAT_R_L2_SHORT},
        {"qvv4t", 22, 0x8100, 2, MOAT_R_VLAN},      {"vvq4t", 60, 0x88a8, 2, MOAT_R_VLAN},
        {"4t", 20, 0x0800, 0, MOAT_R_IP_MALFORMED}, {"v6t", 20, 0x86dd, 1, MOAT_R_IP_MALFORMED},
        {"a", 20, 0x0806, 0, MOAT_R_L2_TYPE},
    };

    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct moat_pkt p;
        struct frame f;

        frame_spell(&f, table[i].frame, false);
        parse_copy(f.data, table[i].shown, f.len, &p);
        ck_assert_msg(p.ethertype == table[i].type, "%zu: %x", i, p.ethertype);
        ck_assert_uint_eq(p.n_tags, table[i].n_tags);
        ck_assert_uint_eq(p.reason, table[i].reason);
    }
}
END_TEST

START_TEST(casts)
{
    struct frame f;
    struct moat_pkt p;

    frame_spell(&f, "4u", false);
    parse_copy(f.data, f.len, f.len, &p);
    ck_assert(p.cast == MOAT_UNICAST && !p.ip_multicast);
    memset(f.data, 0xff, 6);
    memset(f.data + f.ip_off + 16, 0xff, 4);
    parse_copy(f.data, f.len, f.len, &p);
    ck_assert(p.cast == MOAT_BROADCAST && p.ip_multicast);
    f.data[5] = 0xfe;
    f.data[f.ip_off + 16] = 239;
    parse_copy(f.data, f.len, f.len, &p);
    ck_assert(p.cast == MOAT_MULTICAST && p.ip_multicast);
    f.data[f.ip_off + 16] = 240;
    parse_copy(f.data, f.len, f.len, &p);
    ck_assert(!p.ip_multicast);
    frame_spell(&f, "6u", false);
    f.data[f.ip_off + 24] = 0xff;
    parse_copy(f.data, f.len, f.len, &p);
    ck_assert(p.ip_multicast);
}
END_TEST

/* --- quoted packets: b answers what a sent --- */

struct quote_row {
    const char *outer, *inner;
    uint8_t ok, type, kind, proto;
    uint16_t bytes;        /* of the inner packet; 0: all */
    struct patch patch[4]; /* of the inner frame */
    const char *name;
};

#define Q(KIND, PROTO) .ok = 1, .kind = MOAT_PKT_##KIND, .proto = PROTO

static const struct quote_row quotes[] = {
    {"4i", "4t", Q(TCP, 6), .type = 3, .name = "TCP"},
    {"4i", "4t", Q(TCP, 6), .type = 11, .bytes = 28, .name = "TCP, 8 bytes"},
    {"4i", "4ot", Q(TCP, 6), .type = 12, .bytes = 36, .name = "options"},
    {"4i", "4u", Q(UDP, 17), .type = 3, .name = "UDP"},
    {"4i", "4i", Q(ICMP_QUERY, 1), .type = 3, .name = "echo"},
    {"4i", "4g", Q(IP_OTHER, 47), .type = 4, .name = "GRE"},
    {"v4oi", "4t", Q(TCP, 6), .type = 3, .name = "tagged, outer options"},
    {"4i", "4t", Q(TCP, 6), .type = 3, PATCH({IP, 6, 0x20}), .name = "first fragment"},
    {"6i", "6t", Q(TCP, 6), .type = 1, .name = "IPv6 TCP"},
    {"6i", "6u", Q(UDP, 17), .type = 2, .bytes = 48, .name = "IPv6 UDP, 8 bytes"},
    {"6i", "6i", Q(ICMP_QUERY, 58), .type = 3, .name = "IPv6 echo"},
    {"6hi", "6hdRu", Q(UDP, 17), .type = 4, .name = "extensions"},
    {"6i", "6At", Q(TCP, 6), .type = 2, .name = "AH"},
    {"6i", "6mg", Q(IP_OTHER, 47), .type = 2, .name = "mobility"},
    {"6i", "6Hg", Q(IP_OTHER, 139), .type = 2, PATCH({EXT, 0, 59}), .name = "HIP"},
    {"6i", "6ddddddddt", Q(TCP, 6), .type = 1, .name = "eight quoted extensions"},
    {"6i", "60u", Q(UDP, 17), .type = 1, .name = "atomic fragment"},
    {"6i", "6Fu", Q(UDP, 17), .type = 2, .name = "IPv6 first fragment"},

    {"4i", "4t", .type = 3, .bytes = 27, .name = "7 bytes of TCP"},
    {"4i", "4t", .type = 3, .bytes = 19, .name = "short header"},
    {"4i", "4ot", .type = 3, .bytes = 35, .name = "options eat it up"},
    {"4i", "4t", .type = 3, PATCH({IP, 0, 0x4f}, {IP, 2, 0}), .bytes = 60, .name = "ihl 15"},
    {"4i", "4t", .type = 3, PATCH({IP, 0, 0x44}), .name = "ihl 4"},
    {"4i", "6t", .type = 3, .name = "IPv6 in ICMP"},
    {"6i", "4t", .type = 1, .name = "IPv4 in ICMPv6"},
    {"4i", "4t", .type = 3, PATCH({IP, 7, 1}), .name = "later fragment"},
    {"6i", "6Lt", .type = 1, .name = "IPv6 later fragment"},
    {"6i", "60Ft", .type = 1, .name = "nested fragment"},
    {"6i", "6dht", .type = 1, .name = "quoted hop-by-hop not first"},
    {"6i", "6Rt", .type = 1, PATCH({EXT, 3, 1}), .name = "quoted routing, one left"},
    {"6i", "6dddddddddt", .type = 1, .name = "nine quoted extensions"},
    {"4i", "4i", .type = 3, PATCH({L4, 0, 3}), .name = "an error"},
    {"4i", "4i", .type = 3, PATCH({L4, 0, 5}), .name = "a redirect"},
    {"6i", "6i", .type = 1, PATCH({L4, 0, 1}), .name = "an ICMPv6 error"},
    {"6i", "6i", .type = 1, PATCH({L4, 0, 135}), .name = "neighbour discovery"},
    {"4i", "4t", .type = 3, PATCH({IP, 15, 9}), .name = "not what its addressee sent"},
    {"6i", "6t", .type = 1, PATCH({IP, 23, 9}), .name = "not what its IPv6 addressee sent"},
    {"6i", "6t", .type = 1, .bytes = 47, .name = "IPv6, 7 bytes"},
    {"6i", "6t", .type = 1, .bytes = 39, .name = "IPv6, short header"},
    {"6i", "6dt", .type = 1, .bytes = 44, .name = "IPv6, short extension"},
    {"6i", "6dt", .type = 1, PATCH({EXT, 1, 255}), .name = "IPv6, extension beyond"},
    {"4i", "4t", .type = 8, .name = "not an error"},
    {"4i", "4t", .type = 5, .name = "redirect"},
};

static void build_quote(struct frame *f, const struct quote_row *r, bool padding)
{
    struct frame in, outer;
    uint32_t n;

    frame_spell(&in, r->inner, false);
    frame_patch(&in, r->patch);
    n = r->bytes ? r->bytes : in.len - in.ip_off;
    frame_spell(&outer, r->outer, true);
    *f = outer;
    f->len = f->l4_off + 8;
    f->data[f->l4_off] = r->type;
    if (padding)
        frame_end(f); /* the quote is behind the packet's end */
    f->len = f->l4_off + 8;
    frame_bytes(f, in.data + in.ip_off, n);
    if (!padding)
        frame_end(f);
}

START_TEST(quoted)
{
    const struct quote_row *r = &quotes[_i];
    struct moat_pkt p, q;
    struct frame f;

    build_quote(&f, r, false);
    p.data = f.data;
    p.len = p.total = f.len;
    moat_parse(&p);
    ck_assert_msg(moat_parse_quoted(&p, &q) == r->ok, "%s", r->name);
    for (uint32_t n = 0; n < f.len; n++)
        parse_copy(f.data, n, f.len, &p);
    if (!r->ok)
        return;
    ck_assert_uint_eq(q.kind, r->kind);
    ck_assert_uint_eq(q.proto, r->proto);
    ck_assert_uint_eq(q.vlan, *r->outer == 'v' ? 100 : 0);
    ck_assert_mem_eq(q.src, q.family == 6 ? letters_a6 : letters_a4, q.family == 6 ? 16 : 4);
    ck_assert_mem_eq(q.dst, q.family == 6 ? letters_b6 : letters_b4, q.family == 6 ? 16 : 4);
    if (q.kind == MOAT_PKT_TCP || q.kind == MOAT_PKT_UDP) {
        ck_assert_uint_eq(q.sport, 1000);
        ck_assert_uint_eq(q.dport, q.kind == MOAT_PKT_TCP ? 80 : 53);
    }
    if (q.kind == MOAT_PKT_TCP)
        ck_assert_uint_eq(q.tcp.seq, 0x01020304);
    if (q.kind == MOAT_PKT_ICMP_QUERY) {
        ck_assert_uint_eq(q.icmp_id, 7);
        ck_assert_uint_eq(q.icmp_reply, 0);
    }
    /* What follows the packet is not of it. */
    build_quote(&f, r, true);
    p.data = f.data;
    p.len = p.total = f.len;
    moat_parse(&p);
    ck_assert_uint_eq(p.kind, MOAT_PKT_ICMP_ERROR);
    ck_assert_msg(!moat_parse_quoted(&p, &q), "%s, in the padding", r->name);
}
END_TEST

START_TEST(flows)
{
    static const struct {
        const char *frame;
        uint8_t family, proto;
        uint16_t sport, dport;
    } table[] = {
        {"4t", 4, 6, 1000, 80}, {"6u", 6, 17, 1000, 53}, {"4i", 4, 1, 0, 8},
        {"6i", 6, 58, 0, 128},  {"4g", 4, 47, 0, 0},     {"a", MOAT_FAM_ARP, 0, 0, 0},
        {"6Lt", 6, 6, 0, 0},
    };

    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        for (int dir = 0; dir < 2; dir++) {
            struct moat_flow flow, want = {.dir = (uint8_t)dir,
                                           .family = table[i].family,
                                           .proto = table[i].proto,
                                           .sport = table[i].sport,
                                           .dport = table[i].dport};
            struct moat_pkt p;
            struct frame f;

            frame_spell(&f, table[i].frame, false);
            p.data = f.data;
            p.len = p.total = f.len;
            moat_parse(&p);
            memset(&flow, 0xee, sizeof flow);
            moat_pkt_flow(&p, (enum moat_dir)dir, &flow);
            memcpy(dir == MOAT_FROM_VM ? want.local : want.remote,
                   want.family == 6 ? letters_a6 : letters_a4, want.family == 6 ? 16 : 4);
            memcpy(dir == MOAT_FROM_VM ? want.remote : want.local,
                   want.family == 6 ? letters_b6 : letters_b4, want.family == 6 ? 16 : 4);
            ck_assert_mem_eq(&flow, &want, sizeof flow);
        }
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("parse");
    TCase *tc = tcase_create("frames");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, frames, 0, (int)N_ROWS);
    tcase_add_test(tc, truncated_frames);
    tcase_add_test(tc, random_frames);
    tcase_add_test(tc, tcp_fields);
    tcase_add_test(tc, priority_tags);
    tcase_add_test(tc, ethertypes);
    tcase_add_test(tc, casts);
    tcase_add_loop_test(tc, quoted, 0, (int)(sizeof quotes / sizeof *quotes));
    tcase_add_test(tc, flows);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
