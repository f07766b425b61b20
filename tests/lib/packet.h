/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_TESTS_PACKET_H
#define MOAT_TESTS_PACKET_H 1

/* Builds frames for tests, header by header:
 *
 *     struct frame f;
 *     frame_eth(&f, dst_mac, src_mac);
 *     frame_ip4(&f, src, dst, 6);
 *     frame_tcp(&f, sport, dport, seq, ack, MOAT_TCP_SYN, 1000);
 *     frame_data(&f, 10);
 *     frame_end(&f);                 lengths are filled in here
 *
 * Each header can be changed afterwards through the offsets. Checksums stay zero: the
 * filter does not look at them. */

#include <stdint.h>

struct frame {
    uint8_t data[2048];
    uint32_t len;
    uint32_t type_off;             /* of the last ethertype or tag */
    uint32_t ip_off, ip6_next_off; /* IPv6: where the next "next header" goes */
    uint32_t l4_off;
    uint8_t family, proto;
};

void frame_eth(struct frame *, const uint8_t dst[6], const uint8_t src[6]);
void frame_vlan(struct frame *, uint16_t tpid, uint16_t tci);
void frame_arp(struct frame *, uint16_t op, const uint8_t sha[6], const uint8_t spa[4],
               const uint8_t tha[6], const uint8_t tpa[4]);
void frame_rarp(struct frame *, const uint8_t mac[6]);
void frame_ip4(struct frame *, const uint8_t src[4], const uint8_t dst[4], uint8_t proto);
void frame_ip6(struct frame *, const uint8_t src[16], const uint8_t dst[16], uint8_t next);
/* An extension header of 8 + 8 * more bytes between the IPv6 header and the rest. */
void frame_ext6(struct frame *, uint8_t type, uint8_t more);
void frame_frag6(struct frame *, uint16_t offset, int more, uint32_t id);
void frame_tcp(struct frame *, uint16_t sport, uint16_t dport, uint32_t seq, uint32_t ack,
               uint8_t flags, uint16_t win);
void frame_wscale(struct frame *, uint8_t shift); /* an option, behind frame_tcp */
void frame_udp(struct frame *, uint16_t sport, uint16_t dport);
/* ICMP and ICMPv6: 8 bytes, the last four are id and sequence. */
void frame_icmp(struct frame *, uint8_t type, uint8_t code, uint16_t id);
void frame_data(struct frame *, uint32_t n);
void frame_bytes(struct frame *, const void *, uint32_t n);
void frame_end(struct frame *);

#endif /* tests/lib/packet.h */
