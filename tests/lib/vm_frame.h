/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_TESTS_VM_FRAME_H
#define MOAT_TESTS_VM_FRAME_H 1

/* Whole frames between the VMs of the rig (0 to 2), in one line each. */

#include <stdint.h>

#include "tests/lib/packet.h"

/* Window 8192. */
struct frame vm_tcp(unsigned from, unsigned to, uint16_t sport, uint16_t dport, uint32_t seq,
                    uint32_t ack, uint8_t flags, uint32_t len);
struct frame vm_udp(unsigned from, unsigned to, uint16_t sport, uint16_t dport);
struct frame vm_udp6(unsigned from, unsigned to, uint16_t sport, uint16_t dport);
/* Code 0, 20 bytes of data. */
struct frame vm_icmp(unsigned from, unsigned to, uint8_t type, uint16_t id);
/* An ICMP error that quotes the first n bytes of *about from its IP header on. */
struct frame vm_icmp_error(unsigned from, unsigned to, uint8_t type, uint8_t code,
                           const struct frame *about, uint32_t n);
/* ICMPv6 from the VM's address to `dst`, with a body of n bytes behind the first 4. */
struct frame vm_icmp6(unsigned from, const uint8_t dst[16], uint8_t type, const void *body,
                      uint32_t n);
/* *f with a tag in front of its ethertype. */
struct frame vm_tagged(struct frame f, uint16_t tpid, uint16_t tci);

#endif /* tests/lib/vm_frame.h */
