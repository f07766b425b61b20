/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/lib/vm_frame.h"

#include <string.h>

#include "tests/lib/rig.h"

struct frame vm_tcp(unsigned from, unsigned to, uint16_t sport, uint16_t dport, uint32_t seq,
                    uint32_t ack, uint8_t flags, uint32_t len)
{
    struct frame f;

    frame_eth(&f, rig_mac[to], rig_mac[from]);
    frame_ip4(&f, rig_ip4[from], rig_ip4[to], 6);
    frame_tcp(&f, sport, dport, seq, ack, flags, 8192);
    frame_data(&f, len);
    frame_end(&f);
    return f;
}

struct frame vm_udp(unsigned from, unsigned to, uint16_t sport, uint16_t dport)
{
    struct frame f;

    frame_eth(&f, rig_mac[to], rig_mac[from]);
    frame_ip4(&f, rig_ip4[from], rig_ip4[to], 17);
    frame_udp(&f, sport, dport);
    frame_data(&f, 16);
    frame_end(&f);
    return f;
}

struct frame vm_udp6(unsigned from, unsigned to, uint16_t sport, uint16_t dport)
{
    struct frame f;

    frame_eth(&f, rig_mac[to], rig_mac[from]);
    frame_ip6(&f, rig_ip6[from], rig_ip6[to], 17);
    frame_udp(&f, sport, dport);
    frame_data(&f, 16);
    frame_end(&f);
    return f;
}

struct frame vm_icmp(unsigned from, unsigned to, uint8_t type, uint16_t id)
{
    struct frame f;

    frame_eth(&f, rig_mac[to], rig_mac[from]);
    frame_ip4(&f, rig_ip4[from], rig_ip4[to], 1);
    frame_icmp(&f, type, 0, id);
    frame_data(&f, 20);
    frame_end(&f);
    return f;
}

struct frame vm_icmp_error(unsigned from, unsigned to, uint8_t type, uint8_t code,
                           const struct frame *about, uint32_t n)
{
    struct frame f;

    frame_eth(&f, rig_mac[to], rig_mac[from]);
    frame_ip4(&f, rig_ip4[from], rig_ip4[to], 1);
    frame_icmp(&f, type, code, 0);
    frame_bytes(&f, about->data + about->ip_off, n);
    frame_end(&f);
    return f;
}

struct frame vm_icmp6(unsigned from, const uint8_t dst[16], uint8_t type, const void *body,
                      uint32_t n)
{
    uint8_t mac[6] = {0x33, 0x33, dst[12], dst[13], dst[14], dst[15]};
    struct frame f;

    frame_eth(&f, mac, rig_mac[from]);
    frame_ip6(&f, rig_ip6[from], dst, 58);
    frame_icmp(&f, type, 0, 0);
    f.len -= 4; /* the body is not an identifier and a sequence number */
    frame_bytes(&f, body, n);
    frame_end(&f);
    return f;
}

struct frame vm_tagged(struct frame f, uint16_t tpid, uint16_t tci)
{
    const uint8_t tag[4] = {(uint8_t)(tpid >> 8), (uint8_t)tpid, (uint8_t)(tci >> 8), (uint8_t)tci};

    memmove(f.data + 16, f.data + 12, f.len - 12);
    memcpy(f.data + 12, tag, sizeof tag);
    f.len += 4;
    f.type_off += 4;
    f.ip_off += 4;
    f.l4_off += 4;
    return f;
}
