/* SPDX-License-Identifier: Apache-2.0 */
// SYNs that nothing follows, from ever new source ports, past the kernel's own TCP.
#define _GNU_SOURCE
#include "traffic.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

// RFC 9293, section 3.1, with the pseudo header of IPv4.
static uint16_t tcp_checksum(const struct sockaddr_in *from, const struct sockaddr_in *to,
                             const struct tcphdr *t)
{
    uint16_t words[sizeof *t / 2], pseudo[4];
    uint32_t sum = htons(IPPROTO_TCP) + htons(sizeof *t);
    memcpy(words, t, sizeof words);
    memcpy(pseudo, &from->sin_addr, 4);
    memcpy(pseudo + 2, &to->sin_addr, 4);
    for (size_t i = 0; i < sizeof words / 2; i++)
        sum += words[i];
    for (size_t i = 0; i < 4; i++)
        sum += pseudo[i];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

// The address that the kernel would send from.
static struct sockaddr_in source_for(const struct end *to)
{
    struct sockaddr_in from = {0};
    socklen_t n = sizeof from;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&to->ss, to->len) < 0 ||
        getsockname(fd, (struct sockaddr *)&from, &n) < 0)
        die("no way there: %s", strerror(errno));
    close(fd);
    return from;
}

int cmd_syn_flood(int argc, char **argv)
{
    (void)argc;
    struct end to = end_parse(argv[1], argv[2]);
    long count = number(argv[3], 1, 10000000), rate = number(argv[4], 1, 1000000), sent = 0;
    if (to.ss.ss_family != AF_INET)
        die("syn-flood speaks IPv4 only");
    struct sockaddr_in from = source_for(&to), *dst = (struct sockaddr_in *)&to.ss;
    uint16_t dport = dst->sin_port;
    dst->sin_port = 0; // a raw socket has none
    int fd = socket(AF_INET, SOCK_RAW, IPPROTO_TCP);
    if (fd < 0)
        die("socket: %s", strerror(errno));
    int64_t start = now_ms();
    while (sent < count) {
        long due = (now_ms() - start + 1) * rate / 1000;
        for (; sent < count && sent < due; sent++) {
            struct tcphdr t = {.th_sport = htons((uint16_t)(1024 + sent % 60000)),
                               .th_dport = dport,
                               .th_seq = htonl((uint32_t)sent * 2654435761u),
                               .th_off = sizeof t / 4,
                               .th_flags = TH_SYN,
                               .th_win = htons(64240)};
            t.th_sum = tcp_checksum(&from, dst, &t);
            while (sendto(fd, &t, sizeof t, 0, (struct sockaddr *)&to.ss, to.len) < 0 &&
                   errno == ENOBUFS)
                ;
        }
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    printf("{\"sent\":%ld,\"ms\":%lld}\n", sent, (long long)(now_ms() - start));
    return 0;
}
