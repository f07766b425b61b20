/* SPDX-License-Identifier: Apache-2.0 */

/* One row a refused frame, written as in test_parse.c, one letter a header:
 *
 *   v q     802.1Q, 802.1ad tag          t T s   TCP ACK, SYN, SYN with 16 bytes of data
 *   a       ARP                          u       UDP
 *   4 6     IPv4, IPv6                   i       ICMP(v6) echo request
 *   o       40 bytes of IPv4 options     g       GRE
 *   h       hop-by-hop header            +       1400 bytes of data
 *   F L     first, later fragment        p       10 bytes of padding
 *
 * and the answer that it gets.  Each answer is read again by the parser and by a checker
 * that knows nothing of reject.c; so is each answer to a mutated frame. */

#include "datapath/reject.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/packet.h"
#include "tests/lib/trials.h"

#define MUTANTS TRIALS(400000)

/* For inner loops: check's own macros write to a file each time. */
#define must(X)                                                                                    \
    do {                                                                                           \
        if (!(X))                                                                                  \
            ck_abort_msg("%s", #X);                                                                \
    } while (0)

static const uint8_t mac_a[6] = {2, 0, 0, 0, 0, 1}, mac_b[6] = {2, 0, 0, 0, 0, 2};
static const uint8_t a4[4] = {10, 0, 0, 1}, b4[4] = {10, 0, 0, 2};
static const uint8_t a6[16] = {0x20, 1, 0xd, 0xb8, [15] = 1},
                     b6[16] = {0x20, 1, 0xd, 0xb8, [15] = 2};

enum { SEQ = 0xfffffff8, ACK = 0x05060708 }; /* the sequence number wraps within the segment */

enum answer { NOTHING = 0, RST, RST_ACK, UNREACHABLE };

enum { NOWHERE = 0, ETH, IP, L4 }; /* what a patch's offset counts from */

struct patch {
    uint8_t where, off, n, value; /* n bytes from there on get the value */
};

struct row {
    const char *frame;
    enum answer answer;
    uint32_t number; /* RST: seq; RST_ACK: ack; UNREACHABLE: bytes quoted */
    uint32_t cut;    /* contiguous bytes behind the IP header's start; 0: all */
    struct patch patch[3];
    const char *name;
};

#define PATCH(...) .patch = {__VA_ARGS__}
#define FLAGS(F)                                                                                   \
    {                                                                                              \
        L4, 13, 1, F                                                                               \
    }

static const struct row rows[] = {
    /* TCP: RFC 9293, section 3.10.7.1. */
    {"4t", RST, ACK, .name = "ACK"},
    {"4T", RST_ACK, SEQ + 1u, .name = "SYN"},
    {"4s", RST_ACK, SEQ + 17u, .name = "SYN with data"},
    {"4s", RST, 0, PATCH(FLAGS(0x12)), .name = "SYN ACK"},
    {"4t", RST, ACK, PATCH(FLAGS(0x11)), .name = "FIN ACK"},
    {"4t", RST, ACK, PATCH(FLAGS(0xf8)), .name = "ECN bits, URG, PSH"},
    {"4t", NOTHING, PATCH(FLAGS(0x04)), .name = "RST"},
    {"4t", NOTHING, PATCH(FLAGS(0x14)), .name = "RST ACK"},
    {"6t", RST, ACK, .name = "ACK, IPv6"},
    {"6T", RST_ACK, SEQ + 1u, .name = "SYN, IPv6"},
    {"6hT", RST_ACK, SEQ + 1u, .name = "SYN behind an extension header"},
    {"4oT", RST_ACK, SEQ + 1u, .name = "SYN behind options"},
    {"v4T", RST_ACK, SEQ + 1u, .name = "SYN, 802.1Q"},
    {"qv6t", RST, ACK, .name = "ACK, QinQ, IPv6"},
    {"4Tp", RST_ACK, SEQ + 1u, .name = "SYN, padding is no data"},
    {"4Fs", RST_ACK, SEQ + 17u, .name = "first fragment of a SYN"},
    {"6Ft", RST, ACK, .name = "first fragment, IPv6"},
    {"4t+", RST, ACK, .name = "long segment"},
    {"4t+", RST, ACK, .cut = 40, .name = "long segment, its headers alone"},
    {"4t+", NOTHING, .cut = 39, .name = "less than a TCP header"},
    {"6t+", NOTHING, .cut = 59, .name = "less than a TCP header, IPv6"},

    /* The others: an error that quotes as much as fits. */
    {"4u", UNREACHABLE, 52, .name = "UDP"},
    {"6u", UNREACHABLE, 72, .name = "UDP, IPv6"},
    {"4up", UNREACHABLE, 52, .name = "padding is not quoted"},
    {"4u+", UNREACHABLE, 256 - 14 - 28, .name = "long UDP"},
    {"6u+", UNREACHABLE, 256 - 14 - 48, .name = "long UDP, IPv6"},
    {"qv4u+", UNREACHABLE, 256 - 22 - 28, .name = "long UDP, QinQ"},
    {"qv6u+", UNREACHABLE, 256 - 22 - 48, .name = "long UDP, QinQ, IPv6"},
    {"4ou+", UNREACHABLE, 256 - 14 - 28, .name = "all options"},
    {"6hu", UNREACHABLE, 80, .name = "extension header"},
    {"4i", UNREACHABLE, 52, .name = "echo"},
    {"6i", UNREACHABLE, 72, .name = "echo, IPv6"},
    {"4g", UNREACHABLE, 44, .name = "GRE"},
    {"6g", UNREACHABLE, 64, .name = "GRE, IPv6"},
    {"4g", UNREACHABLE, 23, PATCH({IP, 3, 1, 23}), .name = "3 bytes of payload"},
    {"4g", UNREACHABLE, 20, PATCH({IP, 3, 1, 20}), .name = "no payload"},
    {"4Fu+", UNREACHABLE, 256 - 14 - 28, .name = "first fragment"},
    {"6Fu+", UNREACHABLE, 256 - 14 - 48, .name = "first fragment, IPv6"},
    {"4u+", UNREACHABLE, 28, .cut = 28, .name = "contiguous to the end of the UDP header"},
    {"4u+", UNREACHABLE, 101, .cut = 101, .name = "an odd number of bytes"},
    {"6u+", UNREACHABLE, 101, .cut = 101, .name = "an odd number of bytes, IPv6"},
    {"4u+", NOTHING, .cut = 27, .name = "less than 8 bytes of layer 4"},
    {"6u+", NOTHING, .cut = 47, .name = "less than 8 bytes of layer 4, IPv6"},
    {"4ou+", NOTHING, .cut = 67, .name = "less than 8 bytes behind options"},
    {"4u+", NOTHING, .cut = 19, .name = "less than an IPv4 header"},
    {"6u+", NOTHING, .cut = 39, .name = "less than an IPv6 header"},

    /* What is never answered. */
    {"4Lg", NOTHING, .name = "later fragment"},
    {"6Lg", NOTHING, .name = "later fragment, IPv6"},
    {"4i", NOTHING, PATCH({L4, 0, 1, 0}), .name = "echo reply"},
    {"6i", NOTHING, PATCH({L4, 0, 1, 129}), .name = "echo reply, IPv6"},
    {"4i", NOTHING, PATCH({L4, 0, 1, 3}), .name = "unreachable"},
    {"4i", NOTHING, PATCH({L4, 0, 1, 4}), .name = "source quench"},
    {"4i", NOTHING, PATCH({L4, 0, 1, 5}), .name = "redirect"},
    {"4i", NOTHING, PATCH({L4, 0, 1, 11}), .name = "time exceeded"},
    {"4i", NOTHING, PATCH({L4, 0, 1, 12}), .name = "parameter problem"},
    {"6i", NOTHING, PATCH({L4, 0, 1, 1}), .name = "unreachable, IPv6"},
    {"6i", NOTHING, PATCH({L4, 0, 1, 2}), .name = "packet too big"},
    {"6i", NOTHING, PATCH({L4, 0, 1, 100}), .name = "an unknown error, IPv6"},
    {"6i", NOTHING, PATCH({L4, 0, 1, 135}), .name = "neighbour solicitation"},
    {"6i", NOTHING, PATCH({L4, 0, 1, 137}), .name = "redirect, IPv6"},
    {"4g", NOTHING, PATCH({IP, 9, 1, 58}), .name = "ICMPv6 in IPv4"},
    {"6g", NOTHING, PATCH({IP, 6, 1, 1}), .name = "ICMP in IPv6"},
    {"a", NOTHING, .name = "ARP"},
    {"4T", NOTHING, PATCH({L4, 2, 2, 0}), .name = "port 0"},
    {"4T", NOTHING, PATCH(FLAGS(0x03)), .name = "impossible flags"},
    {"4u", NOTHING, PATCH({IP, 0, 1, 0x44}), .name = "malformed IP"},
    {"vqv4u", NOTHING, .name = "three tags"},
    {"4u", NOTHING, PATCH({ETH, 0, 6, 0xff}), .name = "broadcast"},
    {"4u", NOTHING, PATCH({ETH, 0, 1, 1}), .name = "multicast MAC"},
    {"4u", NOTHING, PATCH({ETH, 6, 1, 1}), .name = "multicast source MAC"},
    {"4u", NOTHING, PATCH({ETH, 0, 6, 0}), .name = "no MAC"},
    {"4u", NOTHING, PATCH({ETH, 6, 6, 0}), .name = "no source MAC"},
    {"4u", NOTHING, PATCH({IP, 16, 1, 224}), .name = "multicast"},
    {"4u", NOTHING, PATCH({IP, 16, 1, 240}), .name = "to class E"},
    {"4u", NOTHING, PATCH({IP, 16, 4, 255}), .name = "limited broadcast"},
    {"4u", NOTHING, PATCH({IP, 16, 4, 0}), .name = "to 0.0.0.0"},
    {"4u", NOTHING, PATCH({IP, 16, 1, 0}), .name = "to this network"},
    {"4u", NOTHING, PATCH({IP, 16, 1, 127}), .name = "to loopback"},
    {"4u", NOTHING, PATCH({IP, 12, 4, 0}), .name = "from 0.0.0.0"},
    {"4u", NOTHING, PATCH({IP, 12, 1, 127}), .name = "from loopback"},
    {"4u", NOTHING, PATCH({IP, 12, 1, 224}), .name = "from multicast"},
    {"4T", NOTHING, PATCH({IP, 15, 1, 2}), .name = "from and to the same address"},
    {"6u", NOTHING, PATCH({IP, 24, 1, 0xff}), .name = "multicast, IPv6"},
    {"6u", NOTHING, PATCH({IP, 8, 1, 0xff}), .name = "from multicast, IPv6"},
    {"6u", NOTHING, PATCH({IP, 8, 16, 0}), .name = "from ::"},
    {"6u", NOTHING, PATCH({IP, 24, 16, 0}), .name = "to ::"},
    {"6u", NOTHING, PATCH({IP, 8, 4, 0}), .name = "from ::1"},
    {"6u", NOTHING, PATCH({IP, 24, 4, 0}), .name = "to ::2, an IPv4 address"},
    {"6u", NOTHING, PATCH({IP, 8, 4, 0}, {IP, 18, 2, 0xff}), .name = "IPv4 in IPv6"},
    {"6T", NOTHING, PATCH({IP, 23, 1, 2}), .name = "from and to the same address, IPv6"},
    {"6u", UNREACHABLE, 72, PATCH({IP, 8, 1, 0xfe}, {IP, 9, 1, 0x80}), .name = "from link-local"},
    {"4u", UNREACHABLE, 52, PATCH({IP, 12, 1, 223}), .name = "from the last unicast net"},
    {"4u", UNREACHABLE, 52, PATCH({IP, 16, 1, 126}), .name = "to the one before loopback"},
};

#define N_ROWS (sizeof rows / sizeof *rows)

/* --- frames --- */

static uint8_t proto_of(const char *s)
{
    bool ip6 = strchr(s, '6');

    return strpbrk(s, "tTs") ? 6 : strchr(s, 'u') ? 17 : !strchr(s, 'i') ? 47 : ip6 ? 58 : 1;
}

static void build_l3(struct frame *f, char c, const char *s)
{
    static const uint8_t options[40] = {[0 ... 39] = 1};

    if (c == '4') {
        frame_ip4(f, a4, b4, proto_of(s));
    } else if (c == '6') {
        frame_ip6(f, a6, b6, proto_of(s));
    } else if (c == 'o') {
        frame_bytes(f, options, sizeof options);
        f->data[f->ip_off] = 0x4f;
        f->l4_off = f->len;
    } else if (c == 'h') {
        frame_ext6(f, 0, 0);
    } else if (f->family == 6) {
        frame_frag6(f, c == 'L' ? 80 : 0, c == 'F', 1);
    } else {
        f->data[f->ip_off + 6] = c == 'F' ? 0x20 : 0;
        f->data[f->ip_off + 7] = c == 'L' ? 10 : 0;
    }
}

static void build_l4(struct frame *f, char c)
{
    if (c == 't' || c == 'T' || c == 's') {
        frame_tcp(f, 1000, 80, SEQ, c == 't' ? ACK : 0, c == 't' ? MOAT_TCP_ACK : MOAT_TCP_SYN, 5);
        if (c != 't')
            frame_wscale(f, 7);
        frame_data(f, c == 't' ? 4 : c == 's' ? 16 : 0);
    } else if (c == 'u') {
        frame_udp(f, 1000, 53);
        frame_data(f, 24);
    } else if (c == 'i') {
        frame_icmp(f, f->family == 4 ? 8 : 128, 0, 7);
        frame_data(f, 24);
    } else {
        frame_data(f, 24);
    }
}

/* Layer 4 is a whole number of 8 bytes, as a first fragment's must be. */
static void build(struct frame *f, const char *s)
{
    const char *all = s;

    frame_eth(f, mac_b, mac_a);
    for (; *s && *s != 'p'; s++) {
        if (*s == 'v' || *s == 'q')
            frame_vlan(f, *s == 'v' ? 0x8100 : 0x88a8, *s == 'v' ? 0x6064 : 200);
        else if (*s == 'a')
            frame_arp(f, 1, mac_a, a4, mac_b, b4);
        else if (strchr("46ohFL", *s))
            build_l3(f, *s, all);
        else if (*s == '+')
            frame_data(f, 1400);
        else
            build_l4(f, *s);
    }
    frame_end(f);
    if (*s == 'p')
        frame_data(f, 10);
}

static void build_row(struct frame *f, const struct row *r)
{
    build(f, r->frame);
    for (int i = 0; i < 3 && r->patch[i].where; i++) {
        const struct patch *p = &r->patch[i];
        const uint32_t base[] = {[ETH] = 0, [IP] = f->ip_off, [L4] = f->l4_off};

        memset(f->data + base[p->where] + p->off, p->value, p->n);
    }
}

/* The frame's first len bytes in memory of exactly their size, and the answer in its own. */
struct trial {
    struct moat_pkt p;
    uint8_t *data, *out;
    unsigned n;
};

static void try(struct trial *t, const uint8_t *frame, uint32_t total, uint32_t len, bool cut_late)
{
    uint32_t parsed = cut_late ? total : len;

    memset(t, 0, sizeof *t);
    t->out = malloc(MOAT_REJECT_MAX);
    t->data = malloc(parsed + 1);
    must(t->out && t->data);
    memset(t->out, 0xa5, MOAT_REJECT_MAX);
    memcpy(t->data, frame, parsed);
    t->p.data = t->data;
    t->p.len = parsed;
    t->p.total = total;
    moat_parse(&t->p);
    if (cut_late) {
        t->data = realloc(t->data, len + 1); /* and what it had found is gone */
        must(t->data);
        t->p.data = t->data;
        t->p.len = len;
        t->p.src = t->p.dst = NULL;
    }
    t->n = moat_reject_build(&t->p, t->out);
}

static void end(struct trial *t)
{
    free(t->data);
    free(t->out);
}

/* --- the checker --- */

static uint32_t number(const uint8_t *p, unsigned n)
{
    uint32_t v = 0;

    while (n--)
        v = v << 8 | *p++;
    return v;
}

/* Words and checksum together are a multiple of 65535, and not 0, if it is right: arithmetic
 * on one long number, digit by digit. */
static bool sums_up(const uint8_t *pseudo, unsigned n_pseudo, const uint8_t *p, unsigned n)
{
    uint32_t rest = 0, any = 0;

    for (unsigned i = 0; i < n_pseudo + n; i++) {
        uint8_t digit = i < n_pseudo ? pseudo[i] : p[i - n_pseudo];

        rest = (rest * 256 + digit) % 65535;
        any |= digit;
    }
    if ((n_pseudo + n) % 2)
        rest = rest * 256 % 65535;
    return any && !rest;
}

static bool l4_sums_up(const uint8_t *ip, const uint8_t *l4, unsigned n, uint8_t proto)
{
    uint8_t pseudo[40] = {0};

    if (ip[0] >> 4 == 4) {
        memcpy(pseudo, ip + 12, 8);
        pseudo[9] = proto;
        pseudo[10] = (uint8_t)(n >> 8);
        pseudo[11] = (uint8_t)n;
        return sums_up(pseudo, proto == 1 ? 0 : 12, l4, n);
    }
    memcpy(pseudo, ip + 8, 32);
    pseudo[34] = (uint8_t)(n >> 8);
    pseudo[35] = (uint8_t)n;
    pseudo[39] = proto;
    return sums_up(pseudo, 40, l4, n);
}

/* What every answer must be, whatever it answers. */
static void check_headers(const struct trial *t, const struct moat_pkt *a)
{
    const uint8_t *to = t->p.data, *from = t->out;
    unsigned l3 = t->p.l3_off, size = t->p.family == 4 ? 4 : 16, at = t->p.family == 4 ? 12 : 8;

    must(t->n <= MOAT_REJECT_MAX && a->kind != MOAT_PKT_BAD && a->family == t->p.family);
    must(!memcmp(from, to + 6, 6) && !memcmp(from + 6, to, 6));
    must(a->l3_off == l3 && !memcmp(from + 12, to + 12, l3 - 12));
    must(!memcmp(from + l3 + at, to + l3 + at + size, size));
    must(!memcmp(from + l3 + at + size, to + l3 + at, size));
    must(!(from[0] & 1) && !(from[6] & 1) && a->frag == 0);
    if (a->family == 4) {
        must(from[l3] == 0x45 && number(from + l3 + 1, 1) == 0 && number(from + l3 + 4, 2) == 0);
        must(number(from + l3 + 2, 2) == t->n - l3 && number(from + l3 + 6, 2) == 0x4000);
        must(from[l3 + 8] == 64 && sums_up(NULL, 0, from + l3, 20));
    } else {
        must(number(from + l3, 4) == 0x60000000 && from[l3 + 7] == 64);
        must(number(from + l3 + 4, 2) == t->n - l3 - 40);
    }
    must(l4_sums_up(from + l3, from + a->l4_off, t->n - a->l4_off, a->proto));
}

static void check_rst(const struct trial *t, const struct moat_pkt *a)
{
    const uint8_t *tcp = t->out + a->l4_off, *theirs = t->p.data + t->p.l4_off;

    must(t->n == a->l4_off + 20u && tcp[12] == 0x50 && a->tcp.len == 0 && a->tcp.win == 0);
    must(!memcmp(tcp, theirs + 2, 2) && !memcmp(tcp + 2, theirs, 2) && number(tcp + 18, 2) == 0);
    must(!(theirs[13] & MOAT_TCP_RST));
    if (theirs[13] & MOAT_TCP_ACK)
        must(tcp[13] == MOAT_TCP_RST && a->tcp.ack == 0 && a->tcp.seq == number(theirs + 8, 4));
    else
        must(tcp[13] == (MOAT_TCP_RST | MOAT_TCP_ACK) && a->tcp.seq == 0);
}

static unsigned quoted_bytes(const struct trial *t, const struct moat_pkt *a)
{
    return t->n - a->l4_off - 8;
}

static void check_error(const struct trial *t, const struct moat_pkt *a)
{
    const uint8_t *icmp = t->out + a->l4_off, *ip = t->p.data + t->p.l3_off;
    uint32_t n = quoted_bytes(t, a), there = t->p.len - t->p.l3_off;
    uint32_t whole = t->p.family == 4 ? number(ip + 2, 2) : 40 + number(ip + 4, 2);

    must(a->proto == (t->p.family == 4 ? 1 : 58));
    must(icmp[0] == (t->p.family == 4 ? 3 : 1) && icmp[1] == (t->p.family == 4 ? 13 : 1));
    must(number(icmp + 4, 4) == 0 && !memcmp(icmp + 8, ip, n));
    must(n == there || n == whole || t->n == MOAT_REJECT_MAX);
    must(n <= there && n <= whole);
}

/* A slow list of what must not be answered, from the bytes. */
static bool forbidden4(const uint8_t *a)
{
    uint32_t v = number(a, 4);

    return v >> 24 == 0 || v >> 24 == 127 || v >= 0xe0000000;
}

static bool forbidden(const struct trial *t)
{
    const uint8_t *d = t->p.data, *ip = d + t->p.l3_off, *l4 = d + t->p.l4_off;
    static const uint8_t zero[16];

    if ((d[0] & 1) || (d[6] & 1) || !memcmp(d, zero, 6) || !memcmp(d + 6, zero, 6))
        return true;
    if (ip[0] >> 4 == 4) {
        if (forbidden4(ip + 12) || forbidden4(ip + 16) || number(ip + 6, 2) & 0x1fff)
            return true;
        return ip[9] == 58 || (ip[9] == 1 && l4[0] != 8 && l4[0] != 13);
    }
    if (ip[8] == 0xff || ip[24] == 0xff || !memcmp(ip + 8, zero, 10) || !memcmp(ip + 24, zero, 10))
        return true;
    return t->p.proto == 1 || (t->p.proto == 58 && l4[0] != 128);
}

/* Everything that holds for each answer; it must itself get none. */
static enum answer check_answer(const struct trial *t, struct moat_pkt *a)
{
    uint8_t again[MOAT_REJECT_MAX];

    *a = (struct moat_pkt){.data = t->out, .len = t->n, .total = t->n};
    moat_parse(a);
    check_headers(t, a);
    must(!forbidden(t));
    must(!moat_reject_build(a, again));
    if (a->kind == MOAT_PKT_TCP) {
        must(t->p.kind == MOAT_PKT_TCP);
        check_rst(t, a);
        return a->tcp.flags & MOAT_TCP_ACK ? RST_ACK : RST;
    }
    must(a->kind == MOAT_PKT_ICMP_ERROR && t->p.kind != MOAT_PKT_TCP);
    check_error(t, a);
    return UNREACHABLE;
}

/* --- rows --- */

/* Cut: once so that the parser sees the cut, too (a packet in segments), once behind its
 * back. */
START_TEST(answers)
{
    const struct row *r = &rows[_i];
    struct frame f;

    build_row(&f, r);
    for (int late = r->cut ? 0 : 1; late < 2; late++) {
        struct trial t;
        struct moat_pkt a;

        try(&t, f.data, f.len, r->cut ? f.ip_off + r->cut : f.len, late);
        ck_assert_msg(!t.n == (r->answer == NOTHING), "%s: %u bytes", r->name, t.n);
        if (t.n) {
            ck_assert_msg(check_answer(&t, &a) == r->answer, "%s", r->name);
            ck_assert_msg(r->number == (r->answer == RST       ? a.tcp.seq
                                        : r->answer == RST_ACK ? a.tcp.ack
                                                               : quoted_bytes(&t, &a)),
                          "%s", r->name);
        }
        end(&t);
    }
}
END_TEST

/* Who gets the error can tell what it is about. */
START_TEST(the_quoted_packet_is_found)
{
    static const char *const frames[] = {"4u",   "6u",   "4i", "6i",    "4ou+", "6hu+",
                                         "4Fu+", "6Fu+", "4g", "qv6u+", "v4u+"};

    for (unsigned i = 0; i < sizeof frames / sizeof *frames; i++) {
        struct moat_pkt a, q;
        struct trial t;
        struct frame f;

        build(&f, frames[i]);
        try(&t, f.data, f.len, f.len, false);
        ck_assert_uint_ne(t.n, 0);
        check_answer(&t, &a);
        ck_assert_msg(moat_parse_quoted(&a, &q), "%s", frames[i]);
        ck_assert_uint_eq(q.kind, t.p.kind);
        ck_assert_uint_eq(q.sport, t.p.sport);
        ck_assert_uint_eq(q.dport, t.p.dport);
        ck_assert_uint_eq(q.icmp_id, t.p.icmp_id);
        end(&t);
    }
}
END_TEST

/* A packet of which the pipe has seen no more than its straight line needs. */
START_TEST(quick_packets)
{
    uint8_t out[MOAT_REJECT_MAX], want[MOAT_REJECT_MAX];
    struct moat_pkt p = {0};
    struct frame f;
    unsigned n;

    build(&f, "4u");
    p.data = f.data;
    p.len = p.total = f.len;
    moat_parse(&p);
    n = moat_reject_build(&p, want);
    p = (struct moat_pkt){.data = f.data, .len = f.len, .total = f.len, .kind = MOAT_PKT_UDP};
    p.quick = true;
    ck_assert_uint_eq(moat_reject_build(&p, out), n);
    ck_assert_mem_eq(out, want, n);
}
END_TEST

/* --- hostile bytes --- */

static uint64_t seed = 3;

static uint32_t below(uint32_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % n;
}

START_TEST(mutants)
{
    static const uint8_t odd[] = {0, 1, 0x7f, 0x80, 0xff, 127, 224, 6, 17, 58, 44, 4, 40};
    uint64_t seen[UNREACHABLE + 1] = {0};

    for (uint32_t i = 0; i < MUTANTS; i++) {
        struct frame f;
        struct moat_pkt a;
        struct trial t;
        uint32_t len;

        build_row(&f, &rows[below(N_ROWS)]);
        for (uint32_t k = below(4); k; k--)
            f.data[below(f.len < 90 ? f.len : 90)] =
                (uint8_t)(below(2) ? odd[below(sizeof odd)] : below(256));
        len = below(3) ? f.len : below(f.len + 1);
        try(&t, f.data, f.len, len, below(2));
        seen[t.n ? check_answer(&t, &a) : NOTHING]++;
        end(&t);
    }
    for (unsigned i = 0; i <= UNREACHABLE; i++)
        ck_assert_uint_gt(seen[i], MUTANTS / 50);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("reject");
    TCase *t = tcase_create("frames");
    SRunner *r;
    int failed;

    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, answers, 0, N_ROWS);
    tcase_add_test(t, the_quoted_packet_is_found);
    tcase_add_test(t, quick_packets);
    tcase_add_test(t, mutants);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
