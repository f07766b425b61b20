/* SPDX-License-Identifier: Apache-2.0 */

/* One pass over the headers, outermost first; `off` is where the next one starts.  Each
 * step checks that its header lies within the contiguous bytes before it reads one, and
 * that lengths inside the packet fit what is there.  The first thing that does not fit
 * ends it with a reason.  The straight line is untagged IPv4 without options, TCP or UDP;
 * the rest is out of line. */

#include "parse.h"

#include <stddef.h>
#include <string.h>

enum {
    ETH_LEN = 14,
    TYPE_IP4 = 0x0800,
    TYPE_ARP = 0x0806,
    TYPE_RARP = 0x8035,
    TYPE_IP6 = 0x86dd,
    TYPE_VLAN = 0x8100,
    TYPE_QINQ = 0x88a8,
    ARP_LEN = 28,
    MAX_TAGS = 2,
    MAX_EXTENSIONS = 8,
};

enum {
    P_HOPOPTS = 0,
    P_ICMP = 1,
    P_TCP = 6,
    P_UDP = 17,
    P_ROUTING = 43,
    P_FRAGMENT = 44,
    P_AH = 51,
    P_ICMP6 = 58,
    P_NO_NEXT = 59,
    P_DSTOPTS = 60,
    P_MOBILITY = 135,
    P_HIP = 139,
    P_SHIM6 = 140,
};

enum { OPT_PAD1 = 0, OPT_JUMBO = 0xc2, OPT_HOME_ADDRESS = 0xc9 };

#define NOINLINE __attribute__((noinline))
#define LIKELY(C) __builtin_expect(!!(C), 1)

static inline uint16_t be16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void bad(struct moat_pkt *p, enum moat_reason reason)
{
    p->kind = MOAT_PKT_BAD;
    p->reason = (uint8_t)reason;
}

/* --- layer 4; l4_len: bytes of it in the whole packet, contiguous or not --- */

/* RFC 7323, section 2.  Other options are skipped; a malformed list is what the receiver sees too:
 * it ends the search. */
uint8_t moat_parse_wscale(const uint8_t *tcp)
{
    const uint8_t *o = tcp + 20, *end = tcp + (tcp[12] >> 4) * 4;

    while (o < end && *o) {
        if (*o == 1) {
            o++;
            continue;
        }
        if (end - o < 2 || o[1] < 2 || end - o < o[1])
            break;
        if (*o == 3 && o[1] == 3)
            return (uint8_t)((o[2] > 14 ? 14 : o[2]) | 0x80);
        o += o[1];
    }
    return 0;
}

static bool flags_possible(uint8_t f)
{
    if ((f & MOAT_TCP_SYN) && (f & (MOAT_TCP_FIN | MOAT_TCP_RST)))
        return false;
    if ((f & MOAT_TCP_RST) && (f & (MOAT_TCP_FIN | MOAT_TCP_URG)))
        return false;
    if ((f & MOAT_TCP_SYN) && (f & MOAT_TCP_ACK) && (f & MOAT_TCP_URG))
        return false;
    /* Only SYN and RST may come without ACK (RFC 9293, section 3.10.7.4). */
    return f & (MOAT_TCP_ACK | MOAT_TCP_SYN | MOAT_TCP_RST);
}

static inline void parse_tcp(struct moat_pkt *p, uint32_t off, uint32_t l4_len)
{
    const uint8_t *t = p->data + off;
    uint32_t header;

    if (l4_len < 20 || off + 20 > p->len) {
        bad(p, MOAT_R_L4_MALFORMED);
        return;
    }
    header = (uint32_t)(t[12] >> 4) * 4;
    if (header < 20 || header > l4_len || off + header > p->len) {
        bad(p, MOAT_R_L4_MALFORMED);
        return;
    }
    p->kind = MOAT_PKT_TCP;
    p->sport = be16(t);
    p->dport = be16(t + 2);
    p->tcp.seq = be32(t + 4);
    p->tcp.ack = be32(t + 8);
    p->tcp.flags = t[13] & 0x3f;
    p->tcp.win = be16(t + 14);
    p->tcp.len = l4_len - header;
    p->tcp.wscale = 0;
    if (!p->sport || !p->dport)
        bad(p, MOAT_R_L4_MALFORMED);
    else if (!flags_possible(p->tcp.flags))
        bad(p, MOAT_R_TCP_FLAGS);
    else if (p->tcp.flags & MOAT_TCP_SYN)
        p->tcp.wscale = moat_parse_wscale(t);
}

static inline void parse_udp(struct moat_pkt *p, uint32_t off, uint32_t l4_len)
{
    const uint8_t *u = p->data + off;

    /* A length of 0 is what segmentation offload leaves of a datagram beyond 64 KiB: not
     * accepted. */
    if (l4_len < 8 || off + 8 > p->len || be16(u + 4) < 8 || be16(u + 4) > l4_len || !be16(u + 2)) {
        bad(p, MOAT_R_L4_MALFORMED);
        return;
    }
    p->kind = MOAT_PKT_UDP;
    p->sport = be16(u);
    p->dport = be16(u + 2);
}

static void query(struct moat_pkt *p, uint8_t base, bool reply, uint32_t off, uint32_t l4_len)
{
    if (l4_len < 8 || off + 8 > p->len || p->icmp_code) {
        bad(p, MOAT_R_L4_MALFORMED);
        return;
    }
    p->kind = MOAT_PKT_ICMP_QUERY;
    p->icmp_base = base;
    p->icmp_reply = reply;
    p->icmp_id = be16(p->data + off + 4);
}

static NOINLINE void parse_icmp(struct moat_pkt *p, uint32_t off, uint32_t l4_len)
{
    if (l4_len < 4 || off + 4 > p->len) {
        bad(p, MOAT_R_L4_MALFORMED);
        return;
    }
    p->icmp_type = p->data[off];
    p->icmp_code = p->data[off + 1];
    switch (p->icmp_type) {
    case 8:
    case 0:
        query(p, 8, p->icmp_type == 0, off, l4_len);
        break;
    case 13:
    case 14:
        query(p, 13, p->icmp_type == 14, off, l4_len);
        break;
    case 3:
    case 4:
    case 11:
    case 12:
        p->kind = MOAT_PKT_ICMP_ERROR;
        break;
    default:
        p->kind = MOAT_PKT_ICMP_OTHER;
    }
}

static NOINLINE void parse_icmp6(struct moat_pkt *p, uint32_t off, uint32_t l4_len)
{
    if (l4_len < 4 || off + 4 > p->len) {
        bad(p, MOAT_R_L4_MALFORMED);
        return;
    }
    p->icmp_type = p->data[off];
    p->icmp_code = p->data[off + 1];
    if (p->icmp_type == 128 || p->icmp_type == 129)
        query(p, 128, p->icmp_type == 129, off, l4_len);
    else if (p->icmp_type >= 1 && p->icmp_type <= 4)
        p->kind = MOAT_PKT_ICMP_ERROR;
    else
        p->kind = MOAT_PKT_ICMP_OTHER;
}

static inline void parse_l4(struct moat_pkt *p, uint32_t off, uint32_t l4_len)
{
    p->l4_off = (uint16_t)off;
    if (p->proto == P_TCP)
        parse_tcp(p, off, l4_len);
    else if (p->proto == P_UDP)
        parse_udp(p, off, l4_len);
    else if (p->proto == P_ICMP && p->family == MOAT_FAM_IP4)
        parse_icmp(p, off, l4_len);
    else if (p->proto == P_ICMP6 && p->family == MOAT_FAM_IP6)
        parse_icmp6(p, off, l4_len);
    else
        p->kind = MOAT_PKT_IP_OTHER;
}

/* --- fragments --- */

/* Does the first fragment end before layer 4's header does?  What has no ports is to have the
 * 8 bytes that an ICMP error would quote. */
static bool header_is_cut(const struct moat_pkt *p, uint32_t off, uint32_t l4_len)
{
    if (p->proto != P_TCP)
        return l4_len < 8;
    return l4_len < 20 || (off + 20 <= p->len && (uint32_t)(p->data[off + 12] >> 4) * 4 > l4_len);
}

/* The UDP length speaks of the whole datagram: at least of what is here. */
static void parse_first_udp(struct moat_pkt *p, uint32_t off, uint32_t l4_len)
{
    const uint8_t *u = p->data + off;

    p->l4_off = (uint16_t)off;
    if (off + 8 > p->len || be16(u + 4) < l4_len || !be16(u + 2)) {
        bad(p, MOAT_R_L4_MALFORMED);
        return;
    }
    p->kind = MOAT_PKT_UDP;
    p->sport = be16(u);
    p->dport = be16(u + 2);
}

/* A first fragment has all headers or is refused (RFC 1858, RFC 7112). */
static void parse_first_fragment(struct moat_pkt *p, uint32_t off, uint32_t l4_len)
{
    if (header_is_cut(p, off, l4_len))
        bad(p, MOAT_R_FRAG_TINY);
    else if (p->proto == P_UDP)
        parse_first_udp(p, off, l4_len);
    else
        parse_l4(p, off, l4_len);
}

/* Only its place is looked at.  TCP at 8 or 16 means a header that was cut, or is to be
 * overwritten (RFC 3128). */
static void later_fragment(struct moat_pkt *p, uint32_t off)
{
    p->l4_off = (uint16_t)off;
    if (p->proto == P_TCP && p->frag_at < 20)
        bad(p, MOAT_R_FRAG_TINY);
    else
        p->kind = MOAT_PKT_IP_OTHER;
}

/* Fills in a fragment's place; false if there is no such place.  DF beside it and the reserved
 * bit of IPv4 mean nothing to those who reassemble, so they mean nothing here. */
static bool place_fragment(struct moat_pkt *p, uint32_t head, uint32_t at, uint32_t len, bool more)
{
    p->frag = at ? 2 : 1;
    p->frag_more = more;
    p->frag_at = (uint16_t)at;
    p->frag_head = (uint16_t)head;
    p->frag_len = len;
    if (head + at + len > 65535)
        bad(p, MOAT_R_FRAG_SIZE);
    else if (!len)
        bad(p, at ? MOAT_R_IP_MALFORMED : MOAT_R_FRAG_TINY);
    else if (more && len % 8)
        bad(p, MOAT_R_IP_MALFORMED);
    return !p->reason;
}

/* --- IPv4 --- */

static bool source_routed(const uint8_t *o, const uint8_t *end)
{
    while (o < end && *o) {
        if (*o == 1) {
            o++;
            continue;
        }
        if (*o == 131 || *o == 137) /* LSRR, SSRR */
            return true;
        if (end - o < 2 || o[1] < 2 || end - o < o[1])
            return false;
        o += o[1];
    }
    return false;
}

static NOINLINE void parse_ip4_fragment(struct moat_pkt *p, uint32_t off, uint32_t l4_len,
                                        uint16_t frag)
{
    uint32_t at = (uint32_t)(frag & 0x1fff) * 8;

    p->frag_id = be16(p->data + p->l3_off + 4);
    if (!place_fragment(p, off - p->l3_off, at, l4_len, frag & 0x2000))
        return;
    if (at)
        later_fragment(p, off);
    else
        parse_first_fragment(p, off, l4_len);
}

static inline void parse_ip4(struct moat_pkt *p, uint32_t off)
{
    const uint8_t *ip = p->data + off;
    uint32_t header, total;
    uint16_t frag;

    if (off + 20 > p->len) {
        bad(p, MOAT_R_IP_MALFORMED);
        return;
    }
    header = (uint32_t)(ip[0] & 15) * 4;
    total = be16(ip + 2);
    if (ip[0] >> 4 != 4 || header < 20 || off + header > p->len || total < header ||
        off + total > p->total || ip[12] >= 224) {
        bad(p, MOAT_R_IP_MALFORMED);
        return;
    }
    p->family = MOAT_FAM_IP4;
    p->proto = ip[9];
    p->src = ip + 12;
    p->dst = ip + 16;
    p->ip_multicast = ip[16] >> 4 == 14 || be32(ip + 16) == UINT32_MAX;
    if (header > 20 && source_routed(ip + 20, ip + header)) {
        bad(p, MOAT_R_IP_OPTIONS);
        return;
    }
    frag = be16(ip + 6);
    if (LIKELY(!(frag & 0x3fff)))
        parse_l4(p, off + header, total - header);
    else
        parse_ip4_fragment(p, off + header, total - header, frag);
}

/* --- IPv6 (RFC 8200) --- */

struct walk {
    uint32_t off, left; /* next header; bytes of the packet from there */
    uint8_t next;
    uint8_t message; /* a header that may be all there is: Mobility, HIP or Shim6; else 0 */
    bool fragment;   /* behind a fragment header, atomic or not */
};

/* Headers that name the next one and their own length, all in one form (RFC 6564) but for AH.
 * What is neither one of these nor a fragment header ends the walk: an upper layer, ESP, "no next
 * header", experiments (253, 254), anything unknown. */
static bool is_extension(uint8_t next)
{
    switch (next) {
    case P_HOPOPTS:
    case P_ROUTING:
    case P_DSTOPTS:
    case P_AH:
    case P_MOBILITY:
    case P_HIP:
    case P_SHIM6:
        return true;
    default:
        return false;
    }
}

static bool is_message(uint8_t next)
{
    return next == P_MOBILITY || next == P_HIP || next == P_SHIM6;
}

/* What the chain ends in.  Mobility, HIP and Shim6 messages say that nothing follows: then
 * they are the upper layer themselves. */
static uint8_t upper_layer(uint8_t next, uint8_t message)
{
    return next == P_NO_NEXT && message ? message : next;
}

static uint32_t extension_size(uint8_t type, const uint8_t *h)
{
    return type == P_AH ? ((uint32_t)h[1] + 2) * 4 : ((uint32_t)h[1] + 1) * 8;
}

/* Routing headers of type 0 are dead (RFC 5095); others only once they have no work left, for
 * until then the destination is not the one that counts. */
static bool routed(const uint8_t *h)
{
    return h[2] == 0 || h[3];
}

/* Options in hop-by-hop and destination options headers.  A Home Address makes another source
 * of the one that was checked (RFC 6275); a jumbo payload cannot be, with a payload length
 * (RFC 2675). */
static enum moat_reason check_options(const uint8_t *o, const uint8_t *end)
{
    while (o < end) {
        if (*o == OPT_PAD1) {
            o++;
            continue;
        }
        if (end - o < 2 || end - o < 2 + o[1] || *o == OPT_JUMBO)
            return MOAT_R_IP_MALFORMED;
        if (*o == OPT_HOME_ADDRESS)
            return MOAT_R_IP_OPTIONS;
        o += 2 + o[1];
    }
    return MOAT_R_NONE;
}

/* What an extension header of `size` bytes, all of them here, says against its packet. */
static enum moat_reason check_extension(uint8_t type, const uint8_t *h, uint32_t size)
{
    switch (type) {
    case P_HOPOPTS:
    case P_DSTOPTS:
        return check_options(h + 2, h + size);
    case P_ROUTING:
        return routed(h) ? MOAT_R_IP_OPTIONS : MOAT_R_NONE;
    case P_AH:
        return size < 12 ? MOAT_R_IP_MALFORMED : MOAT_R_NONE;
    default:
        return MOAT_R_NONE;
    }
}

static bool skip_extension(struct moat_pkt *p, struct walk *w)
{
    const uint8_t *h = p->data + w->off;
    enum moat_reason reason;
    uint32_t size = 8;

    if (w->left >= 8 && w->off + 8 <= p->len)
        size = extension_size(w->next, h);
    if (size > w->left || w->off + size > p->len) {
        /* RFC 7112: all headers are in the first fragment. */
        bad(p, p->frag && size > w->left ? MOAT_R_FRAG_TINY : MOAT_R_IP_MALFORMED);
        return false;
    }
    reason = check_extension(w->next, h, size);
    if (reason) {
        bad(p, reason);
        return false;
    }
    if (is_message(w->next))
        w->message = w->next;
    w->next = h[0];
    w->off += size;
    w->left -= size;
    return true;
}

/* True if the walk goes on behind the header: in a first fragment, and in an atomic one, which is
 * a whole packet (RFC 6946). */
static bool fragment6(struct moat_pkt *p, struct walk *w)
{
    const uint8_t *h = p->data + w->off;
    uint32_t head = w->off - p->l3_off - 40;
    uint16_t frag;

    if (w->fragment) { /* nested */
        bad(p, MOAT_R_FRAG);
        return false;
    }
    if (w->left < 8 || w->off + 8 > p->len) {
        bad(p, MOAT_R_IP_MALFORMED);
        return false;
    }
    if (h[0] == P_FRAGMENT) { /* nested too; a later fragment is not walked any further */
        bad(p, MOAT_R_FRAG);
        return false;
    }
    frag = be16(h + 2);
    w->fragment = true;
    w->next = h[0];
    w->off += 8;
    w->left -= 8;
    if (!(frag & 0xfff9))
        return true;
    p->proto = w->next;
    p->frag_id = be32(h + 4);
    if (!place_fragment(p, head, frag & 0xfff8, w->left, frag & 1))
        return false;
    if (p->frag_at)
        later_fragment(p, w->off);
    return !p->frag_at;
}

/* Neighbour discovery and its certificates never come behind a fragment header (RFC 6980): the
 * options that speak for an address would be out of sight. */
static bool is_discovery(const struct moat_pkt *p)
{
    return p->kind == MOAT_PKT_ICMP_OTHER && p->proto == P_ICMP6 &&
           ((p->icmp_type >= 133 && p->icmp_type <= 137) || p->icmp_type == 148);
}

static void end_of_headers(struct moat_pkt *p, const struct walk *w)
{
    p->proto = upper_layer(w->next, w->message);
    if (p->frag)
        parse_first_fragment(p, w->off, w->left);
    else
        parse_l4(p, w->off, w->left);
    if (w->fragment && is_discovery(p))
        bad(p, MOAT_R_FRAG);
}

static NOINLINE void parse_extensions(struct moat_pkt *p, struct walk *w)
{
    for (unsigned n = 0; n <= MAX_EXTENSIONS; n++) {
        if (w->next == P_FRAGMENT) {
            if (!fragment6(p, w))
                return;
        } else if (!is_extension(w->next)) {
            end_of_headers(p, w);
            return;
        } else if (w->next == P_HOPOPTS && n) {
            bad(p, MOAT_R_IP_MALFORMED);
            return;
        } else if (!skip_extension(p, w)) {
            return;
        }
    }
    bad(p, MOAT_R_IP_MALFORMED);
}

static NOINLINE void parse_ip6(struct moat_pkt *p, uint32_t off)
{
    const uint8_t *ip = p->data + off;
    struct walk w = {0};

    if (off + 40 > p->len || ip[0] >> 4 != 6) {
        bad(p, MOAT_R_IP_MALFORMED);
        return;
    }
    w.left = be16(ip + 4);
    w.off = off + 40;
    w.next = ip[6];
    if (w.off + w.left > p->total || ip[8] == 0xff || (!w.left && w.next == P_HOPOPTS)) {
        bad(p, MOAT_R_IP_MALFORMED);
        return;
    }
    p->family = MOAT_FAM_IP6;
    p->src = ip + 8;
    p->dst = ip + 24;
    p->ip_multicast = ip[24] == 0xff;
    parse_extensions(p, &w);
}

/* --- layer 2 --- */

static NOINLINE void parse_arp(struct moat_pkt *p, uint32_t off, uint16_t type)
{
    static const uint8_t head[6] = {0, 1, 8, 0, 6, 4}; /* Ethernet, IPv4 */
    const uint8_t *a = p->data + off;

    if (off + ARP_LEN > p->len || memcmp(a, head, sizeof head)) {
        bad(p, MOAT_R_L2_TYPE);
        return;
    }
    p->family = MOAT_FAM_ARP;
    p->kind = type == TYPE_ARP ? MOAT_PKT_ARP : MOAT_PKT_RARP;
    p->src = a + 14;
    p->dst = a + 24;
}

static NOINLINE uint16_t skip_tags(struct moat_pkt *p, uint32_t *off, uint16_t type)
{
    while (type == TYPE_VLAN || type == TYPE_QINQ) {
        if (p->n_tags == MAX_TAGS || *off + 4 > p->len) {
            bad(p, p->n_tags == MAX_TAGS ? MOAT_R_VLAN : MOAT_R_L2_SHORT);
            return p->n_tags == MAX_TAGS ? type : 0;
        }
        if (!p->vlan)
            p->vlan = be16(p->data + *off) & 0xfff;
        p->n_tags++;
        type = be16(p->data + *off + 2);
        *off += 4;
    }
    return type;
}

static void reset(struct moat_pkt *p)
{
    memset(&p->kind, 0, sizeof *p - offsetof(struct moat_pkt, kind));
}

static inline void parse_l3(struct moat_pkt *p, uint32_t off, uint16_t type)
{
    p->l3_off = (uint16_t)off;
    if (LIKELY(type == TYPE_IP4))
        parse_ip4(p, off);
    else if (type == TYPE_IP6)
        parse_ip6(p, off);
    else if (type == TYPE_ARP || type == TYPE_RARP)
        parse_arp(p, off, type);
    else
        bad(p, MOAT_R_L2_TYPE);
}

void moat_parse(struct moat_pkt *p)
{
    uint32_t off = ETH_LEN;
    uint16_t type;

    reset(p);
    if (p->len < ETH_LEN) {
        bad(p, MOAT_R_L2_SHORT);
        return;
    }
    if (p->data[0] & 1)
        p->cast = be32(p->data) == UINT32_MAX && be16(p->data + 4) == UINT16_MAX ? MOAT_BROADCAST
                                                                                 : MOAT_MULTICAST;
    type = be16(p->data + 12);
    if (__builtin_expect(type == TYPE_VLAN || type == TYPE_QINQ, 0)) {
        type = skip_tags(p, &off, type);
        if (p->reason) {
            p->ethertype = type;
            return;
        }
    }
    p->ethertype = type;
    parse_l3(p, off, type);
}

/* --- quoted packets --- */

static bool quoted_l4(struct moat_pkt *q, uint32_t off)
{
    const uint8_t *t = q->data + off;

    q->l4_off = (uint16_t)off;
    if (off + 8 > q->len)
        return false;
    switch (q->proto) {
    case P_TCP:
        q->tcp.seq = be32(t + 4);
        /* fall through */
    case P_UDP:
        q->kind = q->proto == P_TCP ? MOAT_PKT_TCP : MOAT_PKT_UDP;
        q->sport = be16(t);
        q->dport = be16(t + 2);
        return true;
    case P_ICMP:
        if (q->family == MOAT_FAM_IP4)
            parse_icmp(q, off, q->len - off);
        return q->kind == MOAT_PKT_ICMP_QUERY;
    case P_ICMP6:
        if (q->family == MOAT_FAM_IP6)
            parse_icmp6(q, off, q->len - off);
        return q->kind == MOAT_PKT_ICMP_QUERY;
    default:
        q->kind = MOAT_PKT_IP_OTHER;
        return true;
    }
}

static bool quoted_ip4(struct moat_pkt *q, uint32_t off)
{
    const uint8_t *ip = q->data + off;
    uint32_t header;

    if (off + 20 > q->len || ip[0] >> 4 != 4)
        return false;
    header = (uint32_t)(ip[0] & 15) * 4;
    if (header < 20 || be16(ip + 6) & 0x1fff)
        return false;
    q->family = MOAT_FAM_IP4;
    q->proto = ip[9];
    q->src = ip + 12;
    q->dst = ip + 16;
    return quoted_l4(q, off + header);
}

/* As parse_extensions(), as far as what is quoted must be looked at to find the session. */
static bool quoted_ip6(struct moat_pkt *q, uint32_t off)
{
    const uint8_t *ip = q->data + off;
    uint8_t next, message = 0;
    bool fragment = false;

    if (off + 40 > q->len || ip[0] >> 4 != 6)
        return false;
    q->family = MOAT_FAM_IP6;
    q->src = ip + 8;
    q->dst = ip + 24;
    next = ip[6];
    off += 40;
    for (unsigned n = 0; n <= MAX_EXTENSIONS; n++) {
        const uint8_t *h = q->data + off;

        if (next != P_FRAGMENT && !is_extension(next)) {
            q->proto = upper_layer(next, message);
            return quoted_l4(q, off);
        }
        if (off + 8 > q->len || (next == P_HOPOPTS && n) || (next == P_ROUTING && routed(h)))
            return false;
        if (next == P_FRAGMENT) {
            if (fragment || be16(h + 2) >> 3)
                return false;
            fragment = true;
            off += 8;
        } else {
            off += extension_size(next, h);
        }
        if (is_message(next))
            message = next;
        next = h[0];
    }
    return false;
}

/* Contiguous bytes of the IP packet: what is behind it is padding. */
static uint32_t end_of_ip(const struct moat_pkt *p)
{
    const uint8_t *ip = p->data + p->l3_off;
    uint32_t end = p->family == MOAT_FAM_IP4 ? p->l3_off + (uint32_t)be16(ip + 2)
                                             : p->l3_off + 40 + (uint32_t)be16(ip + 4);

    return end < p->len ? end : p->len;
}

bool moat_parse_quoted(const struct moat_pkt *p, struct moat_pkt *q)
{
    uint32_t off = (uint32_t)p->l4_off + 8;
    bool ok;

    q->data = p->data;
    q->len = p->kind == MOAT_PKT_ICMP_ERROR ? end_of_ip(p) : 0;
    q->total = p->total;
    reset(q);
    if (off > q->len)
        return false;
    q->vlan = p->vlan;
    ok = p->family == MOAT_FAM_IP4 ? quoted_ip4(q, off) : quoted_ip6(q, off);
    /* Who gets the error must have sent what it quotes. */
    return ok && !memcmp(q->src, p->dst, p->family == MOAT_FAM_IP4 ? 4 : 16);
}

void moat_pkt_flow(const struct moat_pkt *p, enum moat_dir dir, struct moat_flow *f)
{
    unsigned len = p->family == MOAT_FAM_IP6 ? 16 : 4;

    memset(f, 0, sizeof *f);
    f->dir = (uint8_t)dir;
    f->family = p->family;
    f->proto = p->proto;
    if (p->proto == (p->family == MOAT_FAM_IP6 ? P_ICMP6 : P_ICMP)) {
        f->sport = p->icmp_code;
        f->dport = p->icmp_type;
    } else {
        f->sport = p->sport;
        f->dport = p->dport;
    }
    memcpy(f->local, dir == MOAT_FROM_VM ? p->src : p->dst, len);
    memcpy(f->remote, dir == MOAT_FROM_VM ? p->dst : p->src, len);
}
