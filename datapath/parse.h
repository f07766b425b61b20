/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_PARSE_H
#define MOAT_DP_PARSE_H 1

/* Bytes to fields.  Pure: no state, no clock, no mbufs.  Everything a packet
 * claims about itself is checked against what is there before it is used. */

#include <stdbool.h>
#include <stdint.h>

#include "moat/flow.h"

/* How many contiguous bytes the host should offer of a segmented packet: all
 * headers that Moat looks at, with IPv6 extension headers and the packet quoted in
 * an ICMP error. */
#define MOAT_PARSE_BYTES 512

enum moat_pkt_kind {
    MOAT_PKT_BAD = 0, /* see `reason` */
    MOAT_PKT_ARP = 1,
    MOAT_PKT_RARP = 2,
    MOAT_PKT_TCP = 3,
    MOAT_PKT_UDP = 4,
    MOAT_PKT_ICMP_QUERY = 5, /* ICMP and ICMPv6 requests and replies that make pairs */
    MOAT_PKT_ICMP_ERROR = 6, /* quotes another packet */
    MOAT_PKT_ICMP_OTHER = 7, /* neighbour discovery, MLD, router messages, ... */
    MOAT_PKT_IP_OTHER = 8,   /* every other IP protocol: address pairs */
};

enum moat_cast { MOAT_UNICAST = 0, MOAT_MULTICAST = 1, MOAT_BROADCAST = 2 };

/* One TCP segment as the state machine needs it; host byte order. */
struct moat_tcp_seg {
    uint32_t seq, ack;
    uint32_t len; /* payload bytes, without SYN and FIN */
    uint16_t win; /* as on the wire, unscaled */
    uint8_t flags;
    uint8_t wscale; /* of a SYN: shift 0-14 | 0x80; 0: no option */
};

#define MOAT_TCP_FIN 0x01
#define MOAT_TCP_SYN 0x02
#define MOAT_TCP_RST 0x04
#define MOAT_TCP_PSH 0x08
#define MOAT_TCP_ACK 0x10
#define MOAT_TCP_URG 0x20

struct moat_pkt {
    /* Filled in by the caller. */
    const uint8_t *data; /* from the Ethernet header on */
    uint32_t len;        /* contiguous bytes at data */
    uint32_t total;      /* of the frame; >= len.  With TSO more than any MTU */

    /* Filled in by moat_parse(). */
    uint8_t kind;   /* enum moat_pkt_kind */
    uint8_t reason; /* enum moat_reason: why it cannot be judged; MOAT_R_NONE if it can */
    uint8_t family; /* enum moat_family; 0 if not known */
    uint8_t proto;
    uint8_t cast;         /* enum moat_cast, of the destination MAC */
    uint8_t ip_multicast; /* destination address is multicast or limited broadcast */
    uint8_t icmp_type, icmp_code;
    uint8_t icmp_reply; /* ICMP_QUERY: this is the reply of its pair */
    uint8_t icmp_base;  /* ICMP_QUERY: type of the request of its pair */
    uint16_t icmp_id;   /* ICMP_QUERY: identifier */
    uint16_t vlan;      /* outermost VLAN id that is not 0; 0: untagged or priority tags */
    uint16_t n_tags;
    uint16_t l3_off, l4_off;
    uint16_t sport, dport; /* TCP, UDP, host byte order; else 0 */
    uint16_t ethertype;    /* behind the tags; 0 if the frame ends before it */
    /* Fragments; all 0 in whole packets, IPv6 atomic fragments (RFC 6946) too. */
    uint8_t frag;             /* 0: whole; 1: first fragment; 2: later fragment */
    uint8_t frag_more;        /* more follow (MF); a first one always has it */
    uint32_t frag_id;         /* identification of the datagram */
    uint16_t frag_at;         /* where its bytes belong in the fragmentable part; a multiple of 8 */
    uint16_t frag_head;       /* what the reassembled packet's length counts before that part: the
                               * IPv4 header, IPv6 extension headers before the fragment header */
    uint32_t frag_len;        /* how many bytes; never 0; frag_head + frag_at + frag_len <= 65535 */
    const uint8_t *src, *dst; /* L3 addresses in data: 4 or 16 bytes; ARP: spa, tpa */
    struct moat_tcp_seg tcp;

    /* The pipe's own. */
    bool quick;    /* moat_parse() has not seen it yet (quick.h) */
    uint8_t by;    /* enum moat_by; what decided, if it was not a session that was there */
    uint32_t rule; /* the rule that decided; 0: the default, or none */
};

/* Parses one frame.  Sets all output fields; `kind` is MOAT_PKT_BAD if and only if
 * `reason` is set.
 * - Ethernet with up to two 802.1Q/802.1ad tags; more: MOAT_R_VLAN.
 * - ARP over Ethernet for IPv4; RARP the same.  Other ethertypes: MOAT_R_L2_TYPE, and
 *   ARP of other networks too: look at `ethertype`.
 * - IPv4 (options skipped; source routing refused), IPv6 with extension headers in
 *   any order, at most 8 (RFC 8200, RFC 7112).  Header lengths against the bytes that are there and
 *   against `total`; Ethernet padding behind the IP packet is allowed.  A total length of 0
 *   with more than 64 KiB (TSO) is not special: guests with TSO send a length that fits.
 *   Jumbograms (RFC 2675) are refused.
 * - What makes another address count than the one that was checked: MOAT_R_IP_OPTIONS.  IPv6
 *   routing headers with segments left, and of type 0 (RFC 5095); the Home Address option.
 * - Mobility, HIP and Shim6 headers are skipped; `proto` is theirs if nothing follows.
 * - TCP flags that no stack sends (SYN+FIN, SYN+RST, RST+URG, FIN without ACK, none):
 *   MOAT_R_TCP_FLAGS.  TCP port 0 and UDP port 0 as destination: MOAT_R_L4_MALFORMED.
 * - Fragments, each by itself: a first one without all headers, TCP at 8 or 16: MOAT_R_FRAG_TINY;
 *   beyond the longest packet: MOAT_R_FRAG_SIZE; nested, or around neighbour discovery (RFC
 *   6980): MOAT_R_FRAG; without bytes, or not of 8 and not the last: MOAT_R_IP_MALFORMED.  The UDP
 *   length is at least what the first one holds.  Of a later one nothing but its place is known,
 *   and its kind is MOAT_PKT_IP_OTHER; `proto` is what its own header says.
 * Checksums are not checked: guests leave them to the host (partial checksums). */
void moat_parse(struct moat_pkt *);

/* The window scale option of a SYN as in moat_tcp_seg.wscale; tcp: its header, which is there
 * whole. */
uint8_t moat_parse_wscale(const uint8_t *tcp);

/* Parses the IP packet quoted in an ICMP error (kind MOAT_PKT_ICMP_ERROR) into *q:
 * addresses, protocol, ports or ICMP query id, TCP seq.  False if it is not usable:
 * too short, a later fragment, itself an ICMP error, or its source is not the
 * error's destination. */
bool moat_parse_quoted(const struct moat_pkt *, struct moat_pkt *q);

/* The packet as the rules see it. */
void moat_pkt_flow(const struct moat_pkt *, enum moat_dir, struct moat_flow *);

#endif /* datapath/parse.h */
