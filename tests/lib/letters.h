/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_TESTS_LETTERS_H
#define MOAT_TESTS_LETTERS_H 1

/* Frames written as strings, one letter per header:
 *
 *   v q     802.1Q, 802.1ad tag          h d     hop-by-hop, destination options
 *   a r x   ARP, RARP, LLDP              R       routing header, type 2, none left
 *   4 6     IPv4, IPv6                   A m     authentication, mobility header
 *   o       8 bytes of IPv4 options      H S     HIP, Shim6 header
 *   t T     TCP ACK, SYN with scale 7    F L     first, later fragment header (IPv6)
 *   u       UDP                          0       atomic fragment header
 *   i       ICMP(v6) echo request        p       10 bytes of padding
 *   g       GRE                          s       a frame that ends here, without payload */

#include <stdbool.h>
#include <stdint.h>

#include "tests/lib/packet.h"

extern const uint8_t letters_mac_a[6], letters_mac_b[6];
extern const uint8_t letters_a4[4], letters_b4[4], letters_a6[16], letters_b6[16];

/* What a patch's offset counts from; EXT: the last extension header of IPv6. */
enum { NOWHERE = 0, ETH, IP, EXT, L4 };

struct patch {
    uint8_t where, off, value;
};

/* From a to b, or back. */
void frame_spell(struct frame *, const char *letters, bool back);

/* Changes up to four bytes; ends at the first NOWHERE. */
void frame_patch(struct frame *, const struct patch p[4]);

#endif /* tests/lib/letters.h */
