/* SPDX-License-Identifier: Apache-2.0 */

/* What a VM may claim to be: its MAC, its addresses and allowed prefixes, and the IPv6
 * link-local address made from its MAC (RFC 4291 appendix A).  The unspecified address
 * only where protocols need it: DHCP (RFC 2131), ARP probes (RFC 5227), duplicate address
 * detection and MLD (RFC 4862, RFC 3810); a probe asks for an address of the VM's own, since it
 * makes the true owner's fail.
 *
 * Guards against rogue routers (RFC 6105) and DHCP servers (as DHCP snooping).  Extension
 * headers hide nothing (RFC 7113): the parser has walked them.
 *
 * Learn-once: the first address of a family that the VM uses becomes its own for good.  Two
 * threads may see two first addresses: one of them wins. */

#include "guard.h"

#include <string.h>

#include "mapping.h"
#include "slot.h"

enum {
    ICMP_REDIRECT = 5,
    ICMP_ROUTER_ADVERTISEMENT = 9,
    ND_RS = 133,
    ND_RA = 134,
    ND_REDIRECT = 137,
    ND_NS = 135,
    ND_NA = 136,
    MLD1_REPORT = 131,
    MLD1_DONE = 132,
    MLD2_REPORT = 143
};
enum { ND_OPT_SOURCE = 1, ND_OPT_TARGET = 2 };
enum { DHCP_SERVER = 67, DHCP_CLIENT = 68, DHCP6_CLIENT = 546 };
enum { BOOTP_OP = 0, BOOTP_HTYPE = 1, BOOTP_HLEN = 2, BOOTP_CHADDR = 28, BOOTP_REPLY = 2 };

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

static bool is_multicast(unsigned family, const uint8_t *addr)
{
    return family == MOAT_FAM_IP6 ? addr[0] == 0xff : addr[0] >= 224;
}

/* True: addr is the one that was learnt, perhaps just now. */
static bool learn(const struct moat_view *v, unsigned family, const uint8_t *addr)
{
    struct moat_learnt *l = &v->learnt[family == MOAT_FAM_IP6];
    unsigned len = family == MOAT_FAM_IP6 ? 16 : 4;
    uint32_t state = __atomic_load_n(&l->state, __ATOMIC_ACQUIRE);

    if (!memcmp(addr, zeros, len) || is_multicast(family, addr))
        return false;
    if (state == MOAT_LEARNT_NOTHING &&
        __atomic_compare_exchange_n(&l->state, &state, MOAT_LEARNING, false, __ATOMIC_ACQ_REL,
                                    __ATOMIC_ACQUIRE)) {
        memcpy(l->addr, addr, len);
        __atomic_store_n(&l->state, MOAT_LEARNT, __ATOMIC_RELEASE);
        return true;
    }
    return state == MOAT_LEARNT && !memcmp(l->addr, addr, len);
}

static bool owns(const struct moat_view *v, unsigned family, const uint8_t *addr)
{
    bool learns = v->settings.spoof == MOAT_SPOOF_LEARN;

    if (!v->n_addrs && !learns)
        return true;
    for (unsigned i = 0; i < v->n_addrs; i++)
        if (v->addrs[i].family == family && prefix_match(v->addrs[i].addr, addr, v->addrs[i].plen))
            return true;
    if (family == MOAT_FAM_IP6 && is_link_local_of(v->mac, addr))
        return true;
    return learns && learn(v, family, addr);
}

/* What a probe asks for: an address of the VM's own, or one that it has yet to choose. */
static bool may_probe(const struct moat_view *v, unsigned family, const uint8_t *addr)
{
    if (v->settings.spoof == MOAT_SPOOF_LEARN &&
        __atomic_load_n(&v->learnt[family == MOAT_FAM_IP6].state, __ATOMIC_ACQUIRE) != MOAT_LEARNT)
        return true;
    return owns(v, family, addr);
}

static enum moat_reason check_arp(const struct moat_view *v, const struct moat_pkt *p)
{
    const uint8_t *arp = p->data + p->l3_off; /* 28 bytes were there */

    if (memcmp(arp + 8, v->mac, 6))
        return MOAT_R_SPOOF_ARP;
    if (memcmp(p->src, zeros, 4) ? !owns(v, MOAT_FAM_IP4, p->src)
                                 : !may_probe(v, MOAT_FAM_IP4, p->dst))
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
    if (p->icmp_type == ND_NS && !memcmp(p->src, zeros, 16) &&
        !may_probe(v, MOAT_FAM_IP6, p->data + p->l4_off + 8))
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

/* A client asks in its own name (RFC 2131, section 2); only a server answers.  A BOOTP message is
 * known by its ports, the server's being 67 on one side at least. */
static enum moat_reason check_dhcp4(const struct moat_view *v, const struct moat_pkt *p)
{
    const uint8_t *bootp = p->data + p->l4_off + 8;

    if (p->dport == DHCP_CLIENT)
        return MOAT_R_DHCP_GUARD;
    if (p->dport != DHCP_SERVER)
        return MOAT_R_NONE;
    if (p->l4_off + 8u + BOOTP_CHADDR + 6 > p->len)
        return MOAT_R_L4_MALFORMED;
    if (bootp[BOOTP_OP] == BOOTP_REPLY)
        return MOAT_R_DHCP_GUARD;
    if (bootp[BOOTP_HTYPE] != 1 || bootp[BOOTP_HLEN] != 6 ||
        memcmp(bootp + BOOTP_CHADDR, v->mac, 6))
        return MOAT_R_SPOOF_DHCP;
    return MOAT_R_NONE;
}

/* What only a router or a DHCP server says. */
static enum moat_reason check_roles(const struct moat_view *v, const struct moat_pkt *p)
{
    bool ip6 = p->family == MOAT_FAM_IP6;

    if (p->kind == MOAT_PKT_ICMP_OTHER && v->settings.ra_guard &&
        (ip6 ? p->icmp_type == ND_RA || p->icmp_type == ND_REDIRECT
             : p->icmp_type == ICMP_ROUTER_ADVERTISEMENT || p->icmp_type == ICMP_REDIRECT))
        return MOAT_R_RA_GUARD;
    if (p->kind != MOAT_PKT_UDP || !v->settings.dhcp_guard)
        return MOAT_R_NONE;
    if (!ip6)
        return check_dhcp4(v, p);
    return p->dport == DHCP6_CLIENT ? MOAT_R_DHCP_GUARD : MOAT_R_NONE;
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

static enum moat_reason check_source(const struct moat_view *v, const struct moat_pkt *p)
{
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

enum moat_reason moat_guard_from_vm(const struct moat_view *v, const struct moat_pkt *p)
{
    enum moat_reason reason = MOAT_R_NONE;

    if (v->settings.spoof != MOAT_SPOOF_OFF)
        reason = check_source(v, p);
    return reason ? reason : check_roles(v, p);
}

/* The switch floods frames for MACs that it does not know to every port.  Were they judged by their
 * addresses, one sender could fill the quotas of all VMs that policy lets it reach, and VMs
 * would see what is for others.  Whoever may send from any MAC may also get frames for any:
 * bridges, virtual MACs of VRRP and the like, receivers of a mirror port. */
enum moat_reason moat_guard_to_vm(const struct moat_view *v, const struct moat_pkt *p)
{
    if (p->cast != MOAT_UNICAST || v->settings.spoof == MOAT_SPOOF_OFF ||
        mac_equal(p->data, v->mac))
        return MOAT_R_NONE;
    return MOAT_R_L2_DESTINATION;
}

bool moat_guard_tags(const struct moat_view *v, const struct moat_pkt *p)
{
    return v->settings.vlan == MOAT_VLAN_INSPECT || (!p->vlan && p->n_tags <= 1);
}

bool moat_guard_ethertype(const struct moat_view *v, const struct moat_pkt *p)
{
    for (unsigned i = 0; i < v->settings.n_ethertypes; i++)
        if (v->settings.ethertypes[i] == p->ethertype)
            return true;
    return false;
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
