/* SPDX-License-Identifier: Apache-2.0 */
// Bulk TCP: both ends send a pattern that depends on place and stream, and check the other's.
//
//   client                            server
//   head {seed, up, down} ----------->
//   `up` bytes of stream seed ------->  (at the same time)
//        <------------------- `down` bytes of stream seed + 1
//        <------------------- u64: bytes of `up` that were right
#define _GNU_SOURCE
#include "traffic.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 64 << 10, STALL_MS = 10000, MAX_CONNS = 64 };

struct head {
    uint64_t seed, up, down;
};

struct flow {
    int fd;
    uint64_t out_seed, out, out_total; // what we send
    uint64_t in_seed, in, in_total, in_right;
};

static void flow_send(struct flow *f)
{
    static uint8_t chunk[CHUNK];
    size_t n = f->out_total - f->out < CHUNK ? (size_t)(f->out_total - f->out) : CHUNK;
    pattern_fill(chunk, n, f->out_seed, f->out);
    ssize_t w = send(f->fd, chunk, n, MSG_DONTWAIT);
    if (w > 0)
        f->out += (uint64_t)w;
    else if (errno != EAGAIN && errno != EINTR)
        die("send: %s", strerror(errno));
}

static void flow_receive(struct flow *f)
{
    static uint8_t chunk[CHUNK];
    size_t n = f->in_total - f->in < CHUNK ? (size_t)(f->in_total - f->in) : CHUNK;
    ssize_t r = recv(f->fd, chunk, n, MSG_DONTWAIT);
    if (r == 0)
        die("the other side hung up after %llu bytes", (unsigned long long)f->in);
    if (r < 0) {
        if (errno != EAGAIN && errno != EINTR)
            die("recv: %s", strerror(errno));
        return;
    }
    if (pattern_is(chunk, (size_t)r, f->in_seed, f->in))
        f->in_right += (uint64_t)r;
    f->in += (uint64_t)r;
}

// Until all flows are done; dies if nothing moves any more.
static void flows_run(struct flow *flows, int n)
{
    for (;;) {
        struct pollfd fds[MAX_CONNS];
        int busy = 0;
        for (int i = 0; i < n; i++) {
            struct flow *f = &flows[i];
            short events =
                (short)((f->out < f->out_total ? POLLOUT : 0) | (f->in < f->in_total ? POLLIN : 0));
            fds[i] = (struct pollfd){.fd = events ? f->fd : -1, .events = events};
            busy += events != 0;
        }
        if (!busy)
            return;
        if (poll(fds, (nfds_t)n, STALL_MS) <= 0)
            die("stalled for %d ms: %llu of %llu out, %llu of %llu in", STALL_MS,
                (unsigned long long)flows[0].out, (unsigned long long)flows[0].out_total,
                (unsigned long long)flows[0].in, (unsigned long long)flows[0].in_total);
        for (int i = 0; i < n; i++) {
            if (fds[i].revents & POLLOUT)
                flow_send(&flows[i]);
            if (fds[i].revents & (POLLIN | POLLHUP | POLLERR))
                flow_receive(&flows[i]);
        }
    }
}

static void whole(int fd, void *at, size_t n, bool out)
{
    for (size_t done = 0; done < n;) {
        ssize_t r = out ? send(fd, (char *)at + done, n - done, 0)
                        : recv(fd, (char *)at + done, n - done, 0);
        if (r <= 0)
            die("%s: %s", out ? "send" : "recv", r ? strerror(errno) : "hung up");
        done += (size_t)r;
    }
}

static void serve_one(int fd)
{
    struct head h;
    whole(fd, &h, sizeof h, false);
    struct flow f = {
        .fd = fd, .out_seed = h.seed + 1, .out_total = h.down, .in_seed = h.seed, .in_total = h.up};
    flows_run(&f, 1);
    whole(fd, &f.in_right, sizeof f.in_right, true);
    char c;
    recv(fd, &c, 1, 0); // the client closes
}

int cmd_serve(int argc, char **argv)
{
    (void)argc;
    int on = 1;
    struct end any = end_any(AF_INET6, (int)number(argv[1], 1, 65535));
    int listener = socket(AF_INET6, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (listener < 0 || bind(listener, (struct sockaddr *)&any.ss, any.len) < 0 ||
        listen(listener, 64) < 0)
        die("port %s: %s", argv[1], strerror(errno));
    background(listener);
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            continue;
        if (fork() == 0) {
            close(listener);
            serve_one(fd);
            _exit(0);
        }
        close(fd);
    }
}

int cmd_bulk(int argc, char **argv)
{
    struct flow flows[MAX_CONNS] = {0};
    struct end to = end_parse(argv[1], argv[2]);
    uint64_t up = (uint64_t)number(argv[3], 0, 1L << 40),
             down = (uint64_t)number(argv[4], 0, 1L << 40);
    int n = argc > 5 ? (int)number(argv[5], 1, MAX_CONNS) : 1;
    uint64_t wrong = 0, bytes = 0;
    int64_t start = now_ms();

    for (int i = 0; i < n; i++) {
        struct head h = {.seed = (uint64_t)i * 1000003, .up = up, .down = down};
        int fd = tcp_open(&to, 0, 5000);
        if (fd < 0)
            die("connect: %s", outcome(-fd));
        whole(fd, &h, sizeof h, true);
        flows[i] = (struct flow){
            .fd = fd, .out_seed = h.seed, .out_total = up, .in_seed = h.seed + 1, .in_total = down};
    }
    flows_run(flows, n);
    printf("{\"ports\":[");
    for (int i = 0; i < n; i++) {
        uint64_t right;
        whole(flows[i].fd, &right, sizeof right, false);
        wrong += (up - right) + (down - flows[i].in_right);
        bytes += right + flows[i].in_right;
        printf("%s%d", i ? "," : "", local_port(flows[i].fd));
    }
    printf("],\"right\":%llu,\"wrong\":%llu,\"ms\":%lld}\n", (unsigned long long)bytes,
           (unsigned long long)wrong, (long long)(now_ms() - start));
    return 0;
}
