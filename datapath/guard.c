/* SPDX-License-Identifier: Apache-2.0 */

/* What a VM may claim to be: its MAC, its addresses and allowed prefixes, and the IPv6
 * link-local address made from its MAC (RFC 4291 appendix A).  The unspecified address
 * only where protocols need it: DHCP (RFC 2131), ARP probes (RFC 5227), duplicate address
 * detection and MLD (RFC 4862, RFC 3810). */

#include "guard.h"

#include <string.h>

#include "slot.h"

enum {
    ND_RS = 133,
    ND_NS = 135,
    ND_NA = 136,
    MLD1_REPORT = 131,
    MLD1_DONE = 132,
    MLD2_REPORT = 143
};
enum { ND_OPT_SOURCE = 1, ND_OPT_TARGET = 2 };

static const uint8_t zeros[16];

static inline bool mac_equal(const uint8_t *a, const uint8_t *b)
{
    uint32_t a4, b4;
    uint16_t a2, b2;

    memcpy(&a4, a, 4);
    memcpy(&b4, b, 4);
    memcpy(&a2, a + 4, 2);
    memcpy(&b2, b + 4, 2);
    return a4 == b4 && a2 == b2;
}

static bool prefix_match(const uint8_t *a, const uint8_t *b, unsigned bits)
{
    unsigned bytes = bits / 8, rest = bits % 8;

    return !memcmp(a, b, bytes) && (!rest || !((a[bytes] ^ b[bytes]) & (uint8_t)(0xff00 >> rest)));
}

static bool is_link_local_of(const uint8_t mac[6], const uint8_t *a)
{
    const uint8_t id[16] = {
        0xfe,   0x80,   0,    0,    0,      0,      0,     0, (uint8_t)(mac[0] ^ 2),
        mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]};

    return !memcmp(a, id, 16);
}

static bool owns(const struct moat_view *v, unsigned family, const uint8_t *addr)
{
    if (!v->n_addrs)
        return true;
    for (unsigned i = 0; i < v->n_addrs; i++)
        if (v->addrs[i].family == family && prefix_match(v->addrs[i].addr, addr, v->addrs[i].plen))
            return true;
    return family == MOAT_FAM_IP6 && is_link_local_of(v->mac, addr);
}

static enum moat_reason check_arp(const struct moat_view *v, const struct moat_pkt *p)
{
    const uint8_t *arp = p->data + p->l3_off; /* 28 bytes were there */

    if (memcmp(arp + 8, v->mac, 6))
        return MOAT_R_SPOOF_ARP;
    if (memcmp(p->src, zeros, 4) && !owns(v, MOAT_FAM_IP4, p->src))
        return MOAT_R_SPOOF_ARP;
    return MOAT_R_NONE;
}

/* Neighbour discovery: the target of an advertisement and all link-layer options must
 * be the VM's own.  (RFC 4861, sections 4.1, 4.3, 4.4.) */
static enum moat_reason check_nd(const struct moat_view *v, const struct moat_pkt *p)
{
    uint32_t fixed = p->icmp_type == ND_RS ? 8 : 24;
    const uint8_t *o = p->data + p->l4_off + fixed;
    const uint8_t *end = p->data + p->len;

    if (p->l4_off + fixed > p->len)
        return MOAT_R_L4_MALFORMED;
    if (p->icmp_type == ND_NA && !owns(v, MOAT_FAM_IP6, p->data + p->l4_off + 8))
        return MOAT_R_SPOOF_ND;
    while (end - o >= 8) {
        if (!o[1])
            return MOAT_R_L4_MALFORMED;
        if ((o[0] == ND_OPT_SOURCE || o[0] == ND_OPT_TARGET) && memcmp(o + 2, v->mac, 6))
            return MOAT_R_SPOOF_ND;
        if (end - o < o[1] * 8)
            return MOAT_R_L4_MALFORMED; /* what cannot be seen is not believed */
        o += o[1] * 8;
    }
    return MOAT_R_NONE;
}

static enum moat_reason check_ip4(const struct moat_view *v, const struct moat_pkt *p)
{
    uint32_t src, own;

    /* Nearly all VMs have one address, and it comes first. */
    memcpy(&src, p->src, 4);
    memcpy(&own, v->addrs[0].addr, 4);
    if (__builtin_expect(src == own && v->addrs[0].family == MOAT_FAM_IP4, 1))
        return MOAT_R_NONE;
    if (owns(v, MOAT_FAM_IP4, p->src))
        return MOAT_R_NONE;
    if (!memcmp(p->src, zeros, 4) && p->kind == MOAT_PKT_UDP && p->sport == 68 && p->dport == 67)
        return MOAT_R_NONE;
    return MOAT_R_SPOOF_IP;
}

static enum moat_reason check_ip6(const struct moat_view *v, const struct moat_pkt *p)
{
    bool nd = p->kind == MOAT_PKT_ICMP_OTHER &&
              (p->icmp_type == ND_RS || p->icmp_type == ND_NS || p->icmp_type == ND_NA);

    if (memcmp(p->src, zeros, 16)) {
        if (!owns(v, MOAT_FAM_IP6, p->src))
            return MOAT_R_SPOOF_IP;
    } else if (!(p->kind == MOAT_PKT_ICMP_OTHER &&
                 (p->icmp_type == ND_NS || p->icmp_type == ND_RS || p->icmp_type == MLD1_REPORT ||
                  p->icmp_type == MLD1_DONE || p->icmp_type == MLD2_REPORT))) {
        return MOAT_R_SPOOF_IP;
    }
    return nd ? check_nd(v, p) : MOAT_R_NONE;
}

enum moat_reason moat_guard_from_vm(const struct moat_view *v, const struct moat_pkt *p)
{
    if (v->settings.spoof != MOAT_SPOOF_STRICT)
        return MOAT_R_NONE;
    if (!mac_equal(p->data + 6, v->mac))
        return MOAT_R_SPOOF_MAC;
    switch (p->family) {
    case MOAT_FAM_IP4:
        return check_ip4(v, p);
    case MOAT_FAM_IP6:
        return check_ip6(v, p);
    case MOAT_FAM_ARP:
        return check_arp(v, p);
    default:
        return MOAT_R_NONE;
    }
}

bool moat_guard_own_rarp(const struct moat_view *v, const struct moat_pkt *p)
{
    static const uint8_t head[8] = {0, 1, 8, 0, 6, 4, 0, 3}; /* Ethernet, IPv4, request reverse */
    const uint8_t *r = p->data + p->l3_off;

    return p->kind == MOAT_PKT_RARP && !p->n_tags && p->total <= 64 && p->cast == MOAT_BROADCAST &&
           !memcmp(p->data + 6, v->mac, 6) && !memcmp(r, head, sizeof head) &&
           !memcmp(r + 8, v->mac, 6) && !memcmp(r + 14, zeros, 4) && !memcmp(r + 18, v->mac, 6) &&
           !memcmp(r + 24, zeros, 4);
}
