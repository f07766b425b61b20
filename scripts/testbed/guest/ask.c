/* SPDX-License-Identifier: Apache-2.0 */
// One question, and how it ends: ok, timeout, or the errno by which the kernel reports a RST
// or an ICMP error.
#define _GNU_SOURCE
#include "traffic.h"

#include <errno.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

enum { DATAGRAM = 65507 };

static int timeout_arg(int argc, char **argv, int i)
{
    return argc > i ? (int)number(argv[i], 1, 600000) : 2000;
}

static int say(const char *text)
{
    puts(text);
    return 0;
}

int cmd_tcp(int argc, char **argv)
{
    struct end to = end_parse(argv[1], argv[2]);
    int sport = argc > 4 ? (int)number(argv[4], 1, 65535) : 0;
    int fd = tcp_open(&to, sport, timeout_arg(argc, argv, 3));
    return say(outcome(fd < 0 ? -fd : 0));
}

int cmd_hold(int argc, char **argv)
{
    struct end to = end_parse(argv[1], argv[2]);
    int fd = tcp_open(&to, (int)number(argv[3], 1, 65535), timeout_arg(argc, argv, 4));
    char c;
    say(outcome(fd < 0 ? -fd : 0));
    if (fd < 0)
        return 0;
    background(fd);
    while (recv(fd, &c, 1, 0) > 0)
        ;
    return 0;
}

int cmd_udp_echo(int argc, char **argv)
{
    static uint8_t buf[DATAGRAM];
    (void)argc;
    struct end any = end_any(AF_INET6, (int)number(argv[1], 1, 65535));
    int fd = socket(AF_INET6, SOCK_DGRAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&any.ss, any.len) < 0)
        die("port %s: %s", argv[1], strerror(errno));
    background(fd);
    for (;;) {
        struct end from = {.len = sizeof from.ss};
        ssize_t n = recvfrom(fd, buf, sizeof buf, 0, (struct sockaddr *)&from.ss, &from.len);
        if (n >= 0)
            sendto(fd, buf, (size_t)n, 0, (struct sockaddr *)&from.ss, from.len);
    }
}

// Waits for an answer to what was sent on fd: its length, or -errno.
static ssize_t await(int fd, uint8_t *buf, size_t size, int64_t deadline)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int64_t left = deadline - now_ms();
    if (left <= 0 || poll(&p, 1, (int)left) == 0)
        return -ETIMEDOUT;
    ssize_t n = recv(fd, buf, size, 0);
    return n < 0 ? -errno : n;
}

int cmd_udp(int argc, char **argv)
{
    static uint8_t asked[DATAGRAM], buf[DATAGRAM];
    struct end to = end_parse(argv[1], argv[2]);
    size_t size = (size_t)number(argv[3], 0, DATAGRAM);
    int fd = socket(to.ss.ss_family, SOCK_DGRAM, 0);
    pattern_fill(asked, size, 7, 0);
    // Connected: only then does the kernel tell of ICMP errors.
    if (fd < 0 || connect(fd, (struct sockaddr *)&to.ss, to.len) < 0)
        return say(outcome(errno));
    if (send(fd, asked, size, 0) < 0)
        return say(outcome(errno));
    ssize_t n = await(fd, buf, sizeof buf, now_ms() + timeout_arg(argc, argv, 4));
    if (n < 0)
        return say(outcome((int)-n));
    return say((size_t)n == size && !memcmp(asked, buf, size) ? "ok" : "bad");
}

static uint16_t checksum(const uint8_t *p, size_t n)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (uint32_t)p[i] << (i & 1 ? 0 : 8);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return htons((uint16_t)~sum);
}

// Echo requests by hand: the payload is checked.
int cmd_ping(int argc, char **argv)
{
    static uint8_t asked[DATAGRAM], buf[DATAGRAM + 60];
    struct end to = end_parse(argv[1], "0");
    bool v6 = to.ss.ss_family == AF_INET6;
    size_t size = (size_t)number(argv[2], 0, DATAGRAM - 8) + 8;
    struct icmphdr *h = (struct icmphdr *)asked;
    int64_t deadline = now_ms() + timeout_arg(argc, argv, 3);
    int fd = socket(to.ss.ss_family, SOCK_RAW, v6 ? (int)IPPROTO_ICMPV6 : (int)IPPROTO_ICMP);
    if (fd < 0)
        die("socket: %s", strerror(errno));
    pattern_fill(asked + 8, size - 8, 9, 0);
    h->type = v6 ? ICMP6_ECHO_REQUEST : ICMP_ECHO;
    h->un.echo.id = htons((uint16_t)getpid());
    h->un.echo.sequence = htons(1);
    if (!v6) // the kernel adds that of ICMPv6
        h->checksum = checksum(asked, size);
    if (sendto(fd, asked, size, 0, (struct sockaddr *)&to.ss, to.len) < 0)
        return say(outcome(errno));
    for (;;) {
        ssize_t n = await(fd, buf, sizeof buf, deadline);
        if (n < 0)
            return say(outcome((int)-n));
        size_t at = v6 ? 0 : (size_t)(buf[0] & 15) * 4;
        struct icmphdr got;
        if ((size_t)n < at + 8)
            continue;
        memcpy(&got, buf + at, sizeof got);
        if (got.type != (v6 ? ICMP6_ECHO_REPLY : ICMP_ECHOREPLY) || got.un.echo.id != h->un.echo.id)
            continue;
        return say((size_t)n == at + size && !memcmp(buf + at + 8, asked + 8, size - 8) ? "ok"
                                                                                        : "bad");
    }
}
