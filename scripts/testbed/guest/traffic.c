/* SPDX-License-Identifier: Apache-2.0 */
// traffic: one thing on the network, done and judged, for test scripts. Beside the worker
// (agent.c), which keeps connections open over a migration: each command here runs as a
// program of its own, in a guest or in a namespace, and prints one line.
#define _GNU_SOURCE
#include "traffic.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

void die(const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    fputs("traffic: ", stderr);
    vfprintf(stderr, format, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(1);
}

int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

long number(const char *text, long least, long most)
{
    char *end;
    long n = strtol(text, &end, 10);
    if (*end || end == text || n < least || n > most)
        die("%s is not a number from %ld to %ld", text, least, most);
    return n;
}

struct end end_any(int family, int port)
{
    struct end e = {.len = family == AF_INET ? sizeof(struct sockaddr_in)
                                             : sizeof(struct sockaddr_in6)};
    e.ss.ss_family = (sa_family_t)family;
    if (family == AF_INET)
        ((struct sockaddr_in *)&e.ss)->sin_port = htons((uint16_t)port);
    else
        ((struct sockaddr_in6 *)&e.ss)->sin6_port = htons((uint16_t)port);
    return e;
}

struct end end_parse(const char *addr, const char *port)
{
    struct end e = end_any(strchr(addr, ':') ? AF_INET6 : AF_INET, (int)number(port, 0, 65535));
    void *at = e.ss.ss_family == AF_INET ? (void *)&((struct sockaddr_in *)&e.ss)->sin_addr
                                         : (void *)&((struct sockaddr_in6 *)&e.ss)->sin6_addr;
    if (inet_pton(e.ss.ss_family, addr, at) != 1)
        die("%s is no address", addr);
    return e;
}

// Eight bytes of the pattern at a time: guests without hardware help are slow.
static uint64_t pattern_word(uint64_t seed, uint64_t at)
{
    uint64_t x = (at >> 3) * 0x9e3779b97f4a7c15u + seed;
    x ^= x >> 29;
    return x * 0xbf58476d1ce4e5b9u;
}

void pattern_fill(uint8_t *to, size_t n, uint64_t seed, uint64_t at)
{
    for (size_t i = 0, take; i < n; i += take) {
        uint64_t word = pattern_word(seed, at + i);
        size_t skip = (at + i) & 7;
        take = 8 - skip < n - i ? 8 - skip : n - i;
        memcpy(to + i, (const uint8_t *)&word + skip, take);
    }
}

bool pattern_is(const uint8_t *bytes, size_t n, uint64_t seed, uint64_t at)
{
    uint8_t wanted[4096];
    for (size_t i = 0, take; i < n; i += take) {
        take = n - i < sizeof wanted ? n - i : sizeof wanted;
        pattern_fill(wanted, take, seed, at + i);
        if (memcmp(bytes + i, wanted, take))
            return false;
    }
    return true;
}

const char *outcome(int error)
{
    if (!error)
        return "ok";
    if (error == EAGAIN || error == EINPROGRESS || error == ETIMEDOUT)
        return "timeout";
    const char *name = strerrorname_np(error);
    return name ? name : "?";
}

void background(int keep)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0)
        die("fork: %s", strerror(errno));
    if (pid > 0)
        _exit(0);
    setsid();
    int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++)
        dup2(null, fd);
    // Whatever else the caller had open, such as a lock, is not ours to keep.
    for (int fd = 3; fd < 1024; fd++)
        if (fd != keep)
            close(fd);
}

int local_port(int fd)
{
    struct end e = {.len = sizeof e.ss};
    getsockname(fd, (struct sockaddr *)&e.ss, &e.len);
    return ntohs(e.ss.ss_family == AF_INET ? ((struct sockaddr_in *)&e.ss)->sin_port
                                           : ((struct sockaddr_in6 *)&e.ss)->sin6_port);
}

int tcp_open(const struct end *to, int sport, int timeout_ms)
{
    int on = 1, error = 0;
    socklen_t n = sizeof error;
    struct end from = end_any(to->ss.ss_family, sport);
    int fd = socket(to->ss.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket: %s", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (sport && bind(fd, (struct sockaddr *)&from.ss, from.len) < 0)
        die("port %d: %s", sport, strerror(errno));
    if (connect(fd, (const struct sockaddr *)&to->ss, to->len) < 0)
        error = errno;
    if (error == EINPROGRESS) {
        struct pollfd p = {.fd = fd, .events = POLLOUT};
        error = ETIMEDOUT;
        if (poll(&p, 1, timeout_ms) > 0)
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &n);
    }
    if (!error) {
        fcntl(fd, F_SETFL, 0);
        return fd;
    }
    close(fd);
    return -error;
}

static const struct command {
    const char *name;
    int least, most; // arguments
    int (*run)(int argc, char **argv);
    const char *usage;
} commands[] = {
    {"serve", 1, 1, cmd_serve, "PORT                      answers `bulk`, in the background"},
    {"bulk", 4, 5, cmd_bulk,
     "ADDR PORT UP DOWN [CONNS]  sends and fetches so many bytes on each connection, both checked"},
    {"tcp", 2, 4, cmd_tcp,
     "ADDR PORT [MS [SPORT]]     connects and closes: ok, timeout or the errno's name"},
    {"hold", 3, 4, cmd_hold,
     "ADDR PORT SPORT [MS]       the same, but stays connected, in the background"},
    {"udp-echo", 1, 1, cmd_udp_echo,
     "PORT                   sends datagrams back, in the background"},
    {"udp", 3, 4, cmd_udp,
     "ADDR PORT SIZE [MS]        asks udp-echo: ok, bad, timeout or the errno's name"},
    {"ping", 2, 3, cmd_ping,
     "ADDR SIZE [MS]             an echo request with so many bytes: ok, bad or timeout"},
    {"syn-flood", 4, 4, cmd_syn_flood,
     "ADDR PORT COUNT RATE  SYNs that nothing follows, so many a second"},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; argc > 1 && i < N_COMMANDS; i++) {
        const struct command *c = &commands[i];
        if (strcmp(c->name, argv[1]))
            continue;
        if (argc - 2 < c->least || argc - 2 > c->most)
            die("usage: traffic %s %s", c->name, c->usage);
        return c->run(argc - 1, argv + 1);
    }
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(stderr, "traffic %s %s\n", commands[i].name, commands[i].usage);
    return 2;
}
