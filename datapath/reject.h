/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_REJECT_H
#define MOAT_DP_REJECT_H 1

/* The answer to a refused packet, as its destination would have sent it: a TCP RST (RFC 9293,
 * section 3.10.7.1), else ICMP "administratively prohibited" (RFC 1812, section 5.2.7.1) or
 * ICMPv6 (RFC 4443, section 3.1).  Pure. */

#include <stddef.h>
#include <stdint.h>

#include "parse.h"

#define MOAT_REJECT_MAX 256 /* bytes of an answer: headers, tags and the quoted beginning */

/* Writes the whole frame that answers *p, which moat_parse() has seen: tags as p's, addresses
 * turned round, all checksums in software, nothing left to an offload.  Returns its length, or
 * 0 if p must not be answered (RFC 1122, section 3.2.2; RFC 4443, section 2.4 (e)):
 * - an ICMP error, redirect, reply or any other ICMP message that is not a request; a RST;
 * - a fragment but the first;
 * - from or to a multicast, broadcast, unspecified or loopback address or MAC, or from and to
 *   the same one;
 * - neighbour discovery, ARP, what could not be parsed;
 * - what has so few contiguous bytes that its answer could not be told whose it is.
 * `reason` is not looked at: it may say already why p was refused. */
unsigned moat_reject_build(const struct moat_pkt *p, uint8_t out[MOAT_REJECT_MAX]);

#endif /* datapath/reject.h */
