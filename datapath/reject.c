/* SPDX-License-Identifier: Apache-2.0 */

/* The answer is the refused packet turned round:
 *
 *   p       | dst | src | tags, type | IP: src dst ... | sport dport ... |
 *   answer  | src | dst | tags, type | IP: dst src     | RST, or ICMP and p's IP packet |
 *                                    ^ l3_off
 *
 * Addresses are read from the bytes, and every header again checked against those that are
 * there: who calls may have cut p->len since it was parsed. */

#include "reject.h"

#include <string.h>

enum {
    TTL = 64,
    IP4_LEN = 20,
    IP6_LEN = 40,
    TCP_LEN = 20,
    ICMP_LEN = 8,
    QUOTE_L4 = 8, /* what an error must quote behind the IP header (RFC 1122, 3.2.2) */
    P_ICMP = 1,
    P_TCP = 6,
    P_ICMP6 = 58,
    UNREACHABLE4 = 3,
    PROHIBITED4 = 13,
    UNREACHABLE6 = 1,
    PROHIBITED6 = 1,
};

/* The largest header before the answer's layer 4, and the largest RST behind it. */
_Static_assert(14 + 2 * 4 + IP6_LEN + TCP_LEN <= MOAT_REJECT_MAX, "a RST fits");
/* IPv4 with all options, and what must be quoted of layer 4. */
_Static_assert(14 + 2 * 4 + IP4_LEN + ICMP_LEN + 60 + QUOTE_L4 <= MOAT_REJECT_MAX, "an error fits");

static uint32_t be16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static void put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static void put32(uint8_t *p, uint32_t v)
{
    put16(p, v >> 16);
    put16(p + 2, v);
}

/* --- may it be answered? --- */

static bool is_one_mac(const uint8_t *m)
{
    return !(m[0] & 1) && (m[0] | m[1] | m[2] | m[3] | m[4] | m[5]);
}

/* Not "this network", loopback, multicast, class E or limited broadcast. */
static bool is_one_host4(const uint8_t *a)
{
    return a[0] && a[0] != 127 && a[0] < 224;
}

/* Not multicast; not ::, ::1, nor an IPv4 address in IPv6's clothes, which is never on a wire. */
static bool is_one_host6(const uint8_t *a)
{
    static const uint8_t zero[10];

    return a[0] != 0xff && memcmp(a, zero, sizeof zero) != 0;
}

static bool between_two_hosts(const struct moat_pkt *p)
{
    const uint8_t *mac = p->data, *ip = p->data + p->l3_off;

    if (p->cast != MOAT_UNICAST || p->ip_multicast || !is_one_mac(mac) || !is_one_mac(mac + 6))
        return false;
    if (p->family == MOAT_FAM_IP4)
        return is_one_host4(ip + 12) && is_one_host4(ip + 16) && memcmp(ip + 12, ip + 16, 4);
    return is_one_host6(ip + 8) && is_one_host6(ip + 24) && memcmp(ip + 8, ip + 24, 16);
}

static bool is_question(const struct moat_pkt *p)
{
    switch ((enum moat_pkt_kind)p->kind) {
    case MOAT_PKT_TCP:
        return !(p->tcp.flags & MOAT_TCP_RST) && (uint32_t)p->l4_off + TCP_LEN <= p->len;
    case MOAT_PKT_UDP:
        return true;
    case MOAT_PKT_ICMP_QUERY:
        return !p->icmp_reply;
    case MOAT_PKT_IP_OTHER: /* one family's ICMP in the other's packets may be an error, too */
        return p->proto != P_ICMP && p->proto != P_ICMP6;
    default:
        return false;
    }
}

static bool may_answer(const struct moat_pkt *p)
{
    uint32_t header = p->family == MOAT_FAM_IP6 ? IP6_LEN : IP4_LEN;

    return (p->family == MOAT_FAM_IP4 || p->family == MOAT_FAM_IP6) && p->frag != 2 &&
           p->l3_off >= 14 && p->l3_off <= 14 + 2 * 4 && p->l3_off + header <= p->len &&
           is_question(p) && between_two_hosts(p);
}

/* --- checksums (RFC 1071) --- */

static uint32_t sum(const uint8_t *p, uint32_t n, uint32_t acc)
{
    for (; n > 1; p += 2, n -= 2)
        acc += be16(p);
    return n ? acc + ((uint32_t)p[0] << 8) : acc;
}

static void put_checksum(uint8_t *p, uint32_t acc)
{
    while (acc >> 16)
        acc = (acc & 0xffff) + (acc >> 16);
    put16(p, ~acc);
}

/* --- headers --- */

/* From p's destination to its source, len bytes behind it.  Returns the sum of the pseudo
 * header. */
static uint32_t put_ip4(uint8_t *out, const uint8_t *ip, uint8_t proto, uint32_t len)
{
    memset(out, 0, IP4_LEN);
    out[0] = 0x45;
    put16(out + 2, IP4_LEN + len);
    out[6] = 0x40; /* whole, and to stay so: its id may be 0 (RFC 6864) */
    out[8] = TTL;
    out[9] = proto;
    memcpy(out + 12, ip + 16, 4);
    memcpy(out + 16, ip + 12, 4);
    put_checksum(out + 10, sum(out, IP4_LEN, 0));
    return sum(out + 12, 8, proto + len);
}

static uint32_t put_ip6(uint8_t *out, const uint8_t *ip, uint8_t proto, uint32_t len)
{
    memset(out, 0, IP6_LEN);
    out[0] = 0x60;
    put16(out + 4, len);
    out[6] = proto;
    out[7] = TTL;
    memcpy(out + 8, ip + 24, 16);
    memcpy(out + 24, ip + 8, 16);
    return sum(out + 8, 32, proto + len);
}

static uint32_t put_ip(uint8_t *out, const struct moat_pkt *p, uint8_t proto, uint32_t len)
{
    const uint8_t *ip = p->data + p->l3_off;

    return p->family == MOAT_FAM_IP4 ? put_ip4(out, ip, proto, len) : put_ip6(out, ip, proto, len);
}

/* --- answers; out is where the IP header goes; returns bytes from there --- */

/* RFC 9293, section 3.10.7.1: the connection does not exist.  Of a first fragment the
 * segment's length is not known; what is known lies within what was sent. */
static unsigned put_rst(uint8_t *out, const struct moat_pkt *p, unsigned ip_len)
{
    const uint8_t *theirs = p->data + p->l4_off;
    uint8_t *tcp = out + ip_len;

    memset(tcp, 0, TCP_LEN);
    memcpy(tcp, theirs + 2, 2);
    memcpy(tcp + 2, theirs, 2);
    tcp[12] = TCP_LEN / 4 << 4;
    if (p->tcp.flags & MOAT_TCP_ACK) {
        put32(tcp + 4, p->tcp.ack);
        tcp[13] = MOAT_TCP_RST;
    } else {
        put32(tcp + 8, p->tcp.seq + p->tcp.len + !!(p->tcp.flags & MOAT_TCP_SYN) +
                           !!(p->tcp.flags & MOAT_TCP_FIN));
        tcp[13] = MOAT_TCP_RST | MOAT_TCP_ACK;
    }
    put_checksum(tcp + 16, sum(tcp, TCP_LEN, put_ip(out, p, P_TCP, TCP_LEN)));
    return ip_len + TCP_LEN;
}

/* Bytes of p's IP packet that are there and can be quoted in `room`; 0: too few for its
 * sender to know which one it was. */
static uint32_t quotable(const struct moat_pkt *p, uint32_t room)
{
    const uint8_t *ip = p->data + p->l3_off;
    bool ip4 = p->family == MOAT_FAM_IP4;
    uint32_t header = ip4 ? (uint32_t)(ip[0] & 15) * 4 : IP6_LEN;
    uint32_t total = ip4 ? be16(ip + 2) : IP6_LEN + be16(ip + 4);
    uint32_t least = total < header + QUOTE_L4 ? total : header + QUOTE_L4;
    uint32_t n = p->len - p->l3_off;

    n = n < total ? n : total; /* no padding */
    n = n < room ? n : room;
    return header >= IP4_LEN && total >= header && n >= least ? n : 0;
}

static unsigned put_unreachable(uint8_t *out, const struct moat_pkt *p, unsigned ip_len)
{
    uint32_t n = quotable(p, MOAT_REJECT_MAX - p->l3_off - ip_len - ICMP_LEN), pseudo;
    bool ip4 = p->family == MOAT_FAM_IP4;
    uint8_t *icmp = out + ip_len;

    if (!n)
        return 0;
    memset(icmp, 0, ICMP_LEN);
    icmp[0] = ip4 ? UNREACHABLE4 : UNREACHABLE6;
    icmp[1] = ip4 ? PROHIBITED4 : PROHIBITED6;
    memcpy(icmp + ICMP_LEN, p->data + p->l3_off, n);
    pseudo = put_ip(out, p, ip4 ? P_ICMP : P_ICMP6, ICMP_LEN + n);
    put_checksum(icmp + 2, sum(icmp, ICMP_LEN + n, ip4 ? 0 : pseudo));
    return ip_len + ICMP_LEN + n;
}

unsigned moat_reject_build(const struct moat_pkt *p, uint8_t out[MOAT_REJECT_MAX])
{
    struct moat_pkt whole;
    unsigned ip_len, n;

    if (p->quick) { /* seen by the straight line alone: not all fields are there */
        whole = *p;
        moat_parse(&whole);
        p = &whole;
    }
    if (!may_answer(p))
        return 0;
    ip_len = p->family == MOAT_FAM_IP4 ? IP4_LEN : IP6_LEN;
    n = p->kind == MOAT_PKT_TCP ? put_rst(out + p->l3_off, p, ip_len)
                                : put_unreachable(out + p->l3_off, p, ip_len);
    if (!n)
        return 0;
    memcpy(out, p->data + 6, 6);
    memcpy(out + 6, p->data, 6);
    memcpy(out + 12, p->data + 12, p->l3_off - 12u);
    return p->l3_off + n;
}
