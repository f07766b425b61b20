/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_FLOW_H
#define MOAT_FLOW_H 1

/* A packet as policy sees it: directions, families, verdicts and the list of
 * drop reasons.  Every part of Moat speaks in these words.
 *
 * Everything is told from the VM's side: `local` is the VM that the slot
 * protects, `remote` is whoever it talks to.  A packet that a VM sends to a
 * neighbour on the same host is judged twice: MOAT_FROM_VM at the sender's
 * slot, MOAT_TO_VM at the receiver's. */

#include <stdbool.h>
#include <stdint.h>

enum moat_dir {
    MOAT_FROM_VM = 0,
    MOAT_TO_VM = 1,
};

enum moat_family {
    MOAT_FAM_IP4 = 4,
    MOAT_FAM_IP6 = 6,
    MOAT_FAM_ARP = 1,
};

enum moat_verdict {
    MOAT_DROP = 0, /* what every verdict starts as */
    MOAT_ALLOW = 1,
    MOAT_REJECT = 2,    /* drop, and tell the sender */
    MOAT_NEXT_TIER = 3, /* no verdict here, the next tier decides */
    MOAT_LOG = 4,       /* log and go on with the next rule */
};

/* A flow: one packet's header as the rules see it.  Pure data, shared by the
 * reference evaluator (policy/eval) and the fast classifier (datapath/classify).
 * Addresses are in network byte order, an IPv4 address in the first 4 bytes and
 * the rest zero.  Ports are in host byte order.  For ICMP and ICMPv6 `dport` is
 * the type and `sport` the code; for other protocols both are 0.  For ARP the
 * addresses are those of the sender and target, `proto` and ports are 0. */
struct moat_flow {
    uint8_t dir;    /* enum moat_dir */
    uint8_t family; /* enum moat_family */
    uint8_t proto;  /* IP protocol number */
    uint8_t pad;
    uint16_t sport, dport;
    uint8_t local[16], remote[16];
};

/* Why a packet was refused.  X(SYMBOL, "name", "what it means to an operator").
 * Append only: the numbers travel in events and counters. */
#define MOAT_REASONS(X)                                                                            \
    X(NONE, "none", "not refused")                                                                 \
    X(UNCLAIMED, "unclaimed", "the port belongs to no vNIC that Moat knows")                       \
    X(BLOCKED, "slot-blocked", "the vNIC's slot is blocked")                                       \
    X(ARRIVING, "slot-arriving", "the vNIC is arriving by migration, its state is not here yet")   \
    X(FROZEN, "slot-frozen", "the vNIC is leaving by migration")                                   \
    X(DEPARTED, "slot-departed", "the vNIC has moved to another host")                             \
    X(NO_POLICY, "no-policy", "no policy for this vNIC, and on-missing-policy is block")           \
    X(RULE, "rule", "a rule of the policy")                                                        \
    X(DEFAULT, "default", "no rule matched, the policy's default")                                 \
    X(L2_SHORT, "l2-short", "frame shorter than an Ethernet header")                               \
    X(L2_TYPE, "l2-ethertype", "ethertype is not on the allow-list")                               \
    X(VLAN, "l2-vlan", "VLAN tags that this vNIC may not send or get")                             \
    X(SPOOF_MAC, "spoof-mac", "source MAC is not the vNIC's")                                      \
    X(SPOOF_ARP, "spoof-arp", "ARP sender is not the vNIC's MAC or address")                       \
    X(SPOOF_IP, "spoof-ip", "source address is not the vNIC's")                                    \
    X(SPOOF_ND, "spoof-nd", "neighbour discovery speaks for an address not the vNIC's")            \
    X(RA_GUARD, "ra-guard", "router advertisement from or to where no router is")                  \
    X(DHCP_GUARD, "dhcp-guard", "DHCP server message from where no server is")                     \
    X(IP_MALFORMED, "ip-malformed", "IP header is short, inconsistent or of a bad version")        \
    X(IP_OPTIONS, "ip-source-route", "source routing options or headers")                          \
    X(L4_MALFORMED, "l4-malformed", "TCP, UDP or ICMP header is short or inconsistent")            \
    X(FRAG, "fragment", "fragment that cannot be judged with its datagram")                        \
    X(FRAG_TINY, "fragment-tiny", "first fragment without all headers (RFC 1858, RFC 7112)")       \
    X(FRAG_OVERLAP, "fragment-overlap", "fragments overlap (RFC 5722)")                            \
    X(TCP_FLAGS, "tcp-flags", "impossible combination of TCP flags")                               \
    X(TCP_NO_SESSION, "tcp-no-session",                                                            \
      "TCP segment that opens nothing and belongs to no session")                                  \
    X(TCP_WINDOW, "tcp-window", "TCP segment outside of the window")                               \
    X(TCP_STATE, "tcp-state", "TCP segment that does not fit the session's state")                 \
    X(ICMP_UNRELATED, "icmp-unrelated", "ICMP error that belongs to no session")                   \
    X(ICMP_REPLY, "icmp-reply", "ICMP reply without a request")                                    \
    X(TABLE_FULL, "table-full", "the session table is full")                                       \
    X(QUOTA, "quota", "the vNIC's quota of sessions is used up")                                   \
    X(POLICY_CHANGE, "policy-change", "the session's policy no longer admits it")                  \
    X(INTERNAL, "internal", "lost a race or met a damaged entry")                                  \
    X(FRAG_SIZE, "fragment-oversized",                                                             \
      "fragments that make a datagram too long, or are behind its end")                            \
    X(FRAG_QUOTA, "fragment-quota", "the vNIC's quota of datagrams in fragments is used up")       \
    X(QUOTA_HALF_OPEN, "quota-half-open", "the vNIC's quota of half-open TCP sessions is used up") \
    X(QUOTA_NEW, "quota-new-sessions", "the vNIC opens more sessions a second than it may")        \
    X(SPOOF_DHCP, "spoof-dhcp", "DHCP request for a MAC that is not the vNIC's")                   \
    X(ICMP_QUOTE, "icmp-quote", "ICMP error whose quoted packet is malformed or was never sent")   \
    X(L2_DESTINATION, "l2-destination",                                                            \
      "frame for a MAC that is not the vNIC's: the switch floods what it does not know")

enum moat_reason {
#define X(SYM, NAME, TEXT) MOAT_R_##SYM,
    MOAT_REASONS(X)
#undef X
        MOAT_N_REASONS
};

static inline const char *moat_reason_name(unsigned reason)
{
    static const char *const names[] = {
#define X(SYM, NAME, TEXT) NAME,
        MOAT_REASONS(X)
#undef X
    };
    return reason < MOAT_N_REASONS ? names[reason] : "?";
}

static inline const char *moat_reason_text(unsigned reason)
{
    static const char *const texts[] = {
#define X(SYM, NAME, TEXT) TEXT,
        MOAT_REASONS(X)
#undef X
    };
    return reason < MOAT_N_REASONS ? texts[reason] : "?";
}

#endif /* moat/flow.h */
