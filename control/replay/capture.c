/* SPDX-License-Identifier: Apache-2.0 */

/* What precedes the network header, by link type (https://www.tcpdump.org/linktypes.html):
 *
 *   EN10MB            an Ethernet header; given as it is
 *   RAW, IPV4, IPV6   nothing
 *   LINUX_SLL         type:16 hardware:16 address length:16 address:64 protocol:16
 *   LINUX_SLL2        protocol:16 reserved:16 interface:32 hardware:16 type:8 length:8 address:64
 */

#include "capture.h"

#include <errno.h>
#include <pcap/pcap.h>
#include <stdio.h>
#include <string.h>

#define TYPE_IP4 0x0800
#define TYPE_IP6 0x86dd
#define ARPHRD_ETHER 1

enum { SLL_BROADCAST = 1, SLL_MULTICAST = 2 };

static uint16_t be16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static void cut(struct moat_captured *c, uint32_t n)
{
    c->data += n;
    c->len -= n;
    c->total -= n;
}

/* A packet that is too short for its link's header has no network header: nothing is left. */
static void put_ip(struct moat_captured *c)
{
    c->ethertype = c->len && c->data[0] >> 4 == 6 ? TYPE_IP6 : TYPE_IP4;
}

static void put_sll(struct moat_captured *c, unsigned header, unsigned type, unsigned hardware,
                    unsigned addr_len, const uint8_t *addr, uint16_t ethertype)
{
    c->to_all = type == SLL_BROADCAST || type == SLL_MULTICAST;
    c->has_source = hardware == ARPHRD_ETHER && addr_len == 6;
    memcpy(c->source, addr, 6);
    c->ethertype = ethertype;
    cut(c, header);
}

static void strip(int link, struct moat_captured *c)
{
    const uint8_t *p = c->data;

    if (link == DLT_EN10MB)
        c->ethernet = true;
    else if (link == DLT_LINUX_SLL && c->len >= 16)
        put_sll(c, 16, be16(p), be16(p + 2), be16(p + 4), p + 6, be16(p + 14));
    else if (link == DLT_LINUX_SLL2 && c->len >= 20)
        put_sll(c, 20, p[10], be16(p + 8), p[11], p + 12, be16(p));
    else if (link == DLT_LINUX_SLL || link == DLT_LINUX_SLL2)
        cut(c, c->len);
    else
        put_ip(c);
}

static bool is_known(int link)
{
    return link == DLT_EN10MB || link == DLT_RAW || link == DLT_IPV4 || link == DLT_IPV6 ||
           link == DLT_LINUX_SLL || link == DLT_LINUX_SLL2;
}

/* Seconds of a pcap file are unsigned, until 2106; libpcap takes them for signed. */
static uint64_t time_us(const struct timeval *t)
{
    int64_t s =
        t->tv_sec < 0 && t->tv_sec >= INT32_MIN ? t->tv_sec + (INT64_C(1) << 32) : t->tv_sec;

    if (s < 0 || t->tv_usec < 0 || s > INT64_MAX / 2000000)
        return 0;
    return (uint64_t)s * 1000000 + (uint64_t)t->tv_usec;
}

static int read_all(pcap_t *p, moat_captured_fn *fn, void *aux, char *err, size_t err_size)
{
    int link = pcap_datalink(p), rc;
    struct pcap_pkthdr *h;
    const uint8_t *data;
    uint64_t n = 0;

    while ((rc = pcap_next_ex(p, &h, &data)) == 1) {
        struct moat_captured c = {.number = ++n,
                                  .time_us = time_us(&h->ts),
                                  .data = data,
                                  .len = h->caplen,
                                  .total = h->len > h->caplen ? h->len : h->caplen};

        strip(link, &c);
        if (!fn(aux, &c))
            return 0;
    }
    if (rc == PCAP_ERROR_BREAK) /* the end of the file */
        return 0;
    snprintf(err, err_size, "broken behind packet %llu: %s", (unsigned long long)n, pcap_geterr(p));
    return -EIO;
}

int moat_capture_read(const char *file, moat_captured_fn *fn, void *aux, char *err, size_t err_size)
{
    char why[PCAP_ERRBUF_SIZE] = "";
    pcap_t *p = pcap_open_offline(file, why);
    const char *name;
    int rc;

    if (!p) {
        size_t n = strlen(file);

        /* libpcap names the file in some messages. */
        snprintf(err, err_size, "%s",
                 !strncmp(why, file, n) && !strncmp(why + n, ": ", 2) ? why + n + 2 : why);
        return -EIO;
    }
    if (is_known(pcap_datalink(p))) {
        rc = read_all(p, fn, aux, err, err_size);
    } else {
        name = pcap_datalink_val_to_name(pcap_datalink(p));
        snprintf(err, err_size,
                 "its packets are of link type %d (%s); EN10MB, RAW, IPV4, IPV6, LINUX_SLL and "
                 "LINUX_SLL2 can be replayed",
                 pcap_datalink(p), name ? name : "unknown");
        rc = -EPROTONOSUPPORT;
    }
    pcap_close(p);
    return rc;
}
