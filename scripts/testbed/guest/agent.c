// The worker inside a test guest.
//
// The host drives it over the second serial port: one command a line, "ID COMMAND ARG...".
// Each answer is any number of lines, then "ID .ok" or "ID .err REASON". One command is
// answered at a time; traffic goes on meanwhile. Everything hangs on one poll loop; the
// only clock is CLOCK_MONOTONIC, so a live migration is no more than a short gap.
//
// It also runs outside of guests, as a machine in a network namespace whose NIC is called
// eth0: "agent unix:PATH" is driven by whoever connects to that socket.
//
// Life of a command: dispatch() runs it. Either it answers at once, or it leaves a
// `pending` operation with a deadline, and the loop answers when that is done.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include <linux/tcp.h>

enum { MAX_CONNS = 512, MAX_LISTENERS = 32, MAX_PROBES = 32, MAX_SINKS = 32, MAX_ARGS = 16 };
enum { RECORD = 16 }; // "%015llu\n"

#define NIC "eth0"

static int serial_fd;
static int listen_fd = -1; // of "unix:PATH"; serial_fd is then who has connected, or -1
static char request_id[32]; // of the command being answered

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

// --- answers -----------------------------------------------------------------

static void put(const char *text, size_t n)
{
    while (n > 0) {
        ssize_t w = write(serial_fd, text, n);
        if (w < 0) {
            if (errno == EAGAIN || errno == EINTR) {
                struct pollfd p = {.fd = serial_fd, .events = POLLOUT};
                poll(&p, 1, 100);
                continue;
            }
            return;
        }
        text += w;
        n -= (size_t)w;
    }
}

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    char line[1024];
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(line, sizeof line - 1, format, ap);
    va_end(ap);
    if (n > (int)sizeof line - 2)
        n = sizeof line - 2;
    line[n++] = '\n';
    put(line, (size_t)n);
}

static void ok(void) { say("%s .ok", request_id); }

__attribute__((format(printf, 1, 2))) static void fail(const char *format, ...)
{
    char why[512];
    va_list ap;
    va_start(ap, format);
    vsnprintf(why, sizeof why, format, ap);
    va_end(ap);
    say("%s .err %s", request_id, why);
}

// --- addresses ---------------------------------------------------------------

struct address {
    struct sockaddr_storage ss;
    socklen_t len;
};

// "10.0.0.1" or "fd00::1"; false if it is neither.
static bool parse_address(const char *text, int port, struct address *a)
{
    memset(a, 0, sizeof *a);
    struct sockaddr_in *v4 = (struct sockaddr_in *)&a->ss;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&a->ss;
    if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)port);
        a->len = sizeof *v4;
        return true;
    }
    if (inet_pton(AF_INET6, text, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((uint16_t)port);
        a->len = sizeof *v6;
        return true;
    }
    return false;
}

// --- TCP connections -----------------------------------------------------------

enum mode { BUSY, IDLE, SPEAKS };
enum state { FREE, CONNECTING, OPEN, CLOSED, RESET, REFUSED, TIMEOUT, FAILED };
static const char *const state_names[] = {"free", "connecting", "open", "closed", "reset", "refused", "timeout", "error"};

struct conn {
    char id[32];
    int fd;
    enum state state;
    enum mode mode;
    bool server;
    int interval_ms;
    int64_t next_send, last_record; // ms
    uint64_t sent, received;        // whole records
    uint64_t bytes_out, bytes_in;
    uint64_t out_of_order;
    int64_t max_gap; // between records since the last mark, ms
    int64_t connected_ms, started;
    uint32_t retrans_mark;
    struct tcp_info last; // as long as the socket lives
    int error;
    char in[RECORD];
    unsigned in_len;
    char peer[64];
};
static struct conn conns[MAX_CONNS];

struct listener {
    int fd, port;
    enum mode mode;
    int interval_ms;
    unsigned accepted;
};
static struct listener listeners[MAX_LISTENERS];

// "busy", "idle", "server-speaks", each with an optional ":INTERVAL_MS".
static bool parse_mode(const char *text, enum mode *mode, int *interval)
{
    size_t n = strcspn(text, ":");
    *interval = text[n] ? atoi(text + n + 1) : 100;
    if (*interval < 1)
        return false;
    static const char *const names[] = {"busy", "idle", "server-speaks"};
    for (int i = 0; i < 3; i++) {
        if (strlen(names[i]) == n && !strncmp(names[i], text, n)) {
            *mode = (enum mode)i;
            return true;
        }
    }
    return false;
}
static const char *const mode_names[] = {"busy", "idle", "server-speaks"};

static struct conn *conn_find(const char *id)
{
    for (int i = 0; i < MAX_CONNS; i++)
        if (conns[i].state != FREE && !strcmp(conns[i].id, id))
            return &conns[i];
    return NULL;
}

static struct conn *conn_new(const char *id)
{
    for (int i = 0; i < MAX_CONNS; i++) {
        if (conns[i].state == FREE) {
            struct conn *c = &conns[i];
            memset(c, 0, sizeof *c);
            snprintf(c->id, sizeof c->id, "%s", id);
            c->fd = -1;
            c->started = now_ms();
            return c;
        }
    }
    return NULL;
}

static void conn_sample(struct conn *c)
{
    socklen_t n = sizeof c->last;
    if (c->fd >= 0)
        getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &c->last, &n);
}

static void conn_end(struct conn *c, enum state state, int error)
{
    conn_sample(c);
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->state = state;
    c->error = error;
}

static void conn_fail(struct conn *c, int error)
{
    enum state s = error == ECONNRESET || error == EPIPE ? RESET
                 : error == ECONNREFUSED               ? REFUSED
                 : error == ETIMEDOUT                  ? TIMEOUT
                                                       : FAILED;
    conn_end(c, s, error);
}

// True if this end sends numbered records of its own accord.
static bool conn_speaks(const struct conn *c)
{
    return c->state == OPEN && ((c->mode == BUSY && !c->server) || (c->mode == SPEAKS && c->server));
}
static bool conn_echoes(const struct conn *c) { return c->server && c->mode != SPEAKS; }

static void conn_send_record(struct conn *c)
{
    char record[RECORD + 1];
    snprintf(record, sizeof record, "%015llu\n", (unsigned long long)c->sent);
    ssize_t n = send(c->fd, record, RECORD, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n == RECORD) {
        c->sent++;
        c->bytes_out += RECORD;
    } else if (n < 0 && errno != EAGAIN && errno != EINTR) {
        conn_fail(c, errno);
    } else if (n > 0) {
        conn_fail(c, EMSGSIZE); // half a record in a full buffer: the count would be off
    }
}

static void conn_record(struct conn *c, const char *record, int64_t now)
{
    if (c->received > 0 || c->last_record) {
        int64_t gap = now - c->last_record;
        if (c->mode != IDLE && gap > c->max_gap)
            c->max_gap = gap;
    }
    if (strtoull(record, NULL, 10) != c->received)
        c->out_of_order++;
    c->received++;
    c->last_record = now;
}

static void conn_open(struct conn *c)
{
    c->state = OPEN;
    c->last_record = c->next_send = now_ms();
    c->connected_ms = c->next_send - c->started;
}

static void conn_readable(struct conn *c)
{
    char buf[4096];
    ssize_t n = recv(c->fd, buf, sizeof buf, MSG_DONTWAIT);
    if (n < 0) {
        if (errno != EAGAIN && errno != EINTR)
            conn_fail(c, errno);
        return;
    }
    if (n == 0) {
        conn_end(c, CLOSED, 0);
        return;
    }
    c->bytes_in += (uint64_t)n;
    int64_t now = now_ms();
    for (ssize_t i = 0; i < n; i++) {
        c->in[c->in_len++] = buf[i];
        if (c->in_len == RECORD) {
            c->in_len = 0;
            conn_record(c, c->in, now);
        }
    }
    if (conn_echoes(c)) {
        ssize_t w = send(c->fd, buf, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (w == n) {
            c->bytes_out += (uint64_t)n;
            c->sent = c->bytes_out / RECORD;
        } else if (w >= 0 || errno == EAGAIN) {
            conn_fail(c, EMSGSIZE);
        } else {
            conn_fail(c, errno);
        }
    }
}

static void conn_ready(struct conn *c, short events)
{
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t n = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &n);
        if (error)
            conn_fail(c, error);
        else if (events & POLLOUT)
            conn_open(c);
        return;
    }
    conn_readable(c);
}

static void conn_status(struct conn *c)
{
    conn_sample(c);
    int64_t now = now_ms();
    int64_t gap = c->max_gap, silent = now - c->last_record;
    bool expects = c->mode != IDLE && (c->mode == BUSY || !c->server);
    if (c->state == OPEN && expects && silent > gap)
        gap = silent; // the gap that is still going on counts
    say("{\"id\":\"%s\",\"mode\":\"%s\",\"role\":\"%s\",\"peer\":\"%s\",\"state\":\"%s\",\"sent\":%llu,\"received\":%llu,"
        "\"out_of_order\":%llu,\"bytes_out\":%llu,\"bytes_in\":%llu,\"max_gap_ms\":%lld,\"silent_ms\":%lld,"
        "\"connect_ms\":%lld,\"retransmits\":%u,\"retransmits_total\":%u,\"unacked\":%u,\"rto_ms\":%u,\"error\":\"%s\"}",
        c->id, mode_names[c->mode], c->server ? "server" : "client", c->peer, state_names[c->state], (unsigned long long)c->sent,
        (unsigned long long)c->received, (unsigned long long)c->out_of_order, (unsigned long long)c->bytes_out,
        (unsigned long long)c->bytes_in, (long long)gap, (long long)silent, (long long)c->connected_ms,
        c->last.tcpi_total_retrans - c->retrans_mark, c->last.tcpi_total_retrans, c->last.tcpi_unacked,
        c->last.tcpi_rto / 1000, c->error ? strerror(c->error) : "");
}

static void conn_mark(struct conn *c)
{
    conn_sample(c);
    c->max_gap = 0;
    c->last_record = now_ms();
    c->retrans_mark = c->last.tcpi_total_retrans;
}

// Starts a connection; it may be open, refused or on its way when this returns.
static struct conn *conn_start(const char *id, const struct address *to)
{
    struct conn *c = conn_new(id);
    if (!c)
        return NULL;
    c->fd = socket(to->ss.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    c->state = CONNECTING;
    if (c->fd < 0 || (connect(c->fd, (const struct sockaddr *)&to->ss, to->len) < 0 && errno != EINPROGRESS))
        conn_fail(c, errno);
    return c;
}

static void listener_accept(struct listener *l)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof ss;
    int fd = accept4(l->fd, (struct sockaddr *)&ss, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    char id[32];
    snprintf(id, sizeof id, "%d#%u", l->port, ++l->accepted);
    struct conn *c = conn_new(id);
    if (!c) {
        close(fd);
        return;
    }
    if (ss.ss_family == AF_INET) {
        struct sockaddr_in *a = (struct sockaddr_in *)&ss;
        char text[INET_ADDRSTRLEN];
        inet_ntop(AF_INET, &a->sin_addr, text, sizeof text);
        snprintf(c->peer, sizeof c->peer, "%s:%u", text, ntohs(a->sin_port));
    } else {
        struct sockaddr_in6 *a = (struct sockaddr_in6 *)&ss;
        char text[INET6_ADDRSTRLEN];
        inet_ntop(AF_INET6, &a->sin6_addr, text, sizeof text);
        snprintf(c->peer, sizeof c->peer, "[%s]:%u", text, ntohs(a->sin6_port));
    }
    c->fd = fd;
    c->server = true;
    c->mode = l->mode;
    c->interval_ms = l->interval_ms;
    conn_open(c);
}

// --- numbered probes -------------------------------------------------------------
// Datagrams that carry a magic, a stream number and a sequence number, over UDP, as ICMP
// echo requests, or as raw Ethernet frames. A sink counts what arrives of them.

enum kind { UDP, ICMP, RAW };
struct __attribute__((packed)) payload {
    uint32_t magic, stream;
    uint64_t seq;
};
static const uint32_t MAGIC = 0x4d4f4154; // "MOAT"

struct probe {
    char id[32];
    bool used, running;
    enum kind kind;
    int fd;
    struct address to;
    uint8_t header[ETH_HLEN];
    double per_ms;
    int64_t started;
    uint64_t sent, errors; // sent counts attempts: the numbers go on
    int last_error;
};
static struct probe probes[MAX_PROBES];

struct sink {
    bool used;
    enum kind kind;
    int fd, number; // UDP port, ethertype
    uint64_t count, first, last, out_of_order;
    int64_t last_ms, max_gap;
};
static struct sink sinks[MAX_SINKS];

static uint16_t checksum(const void *data, size_t n)
{
    const uint8_t *p = data;
    uint32_t sum = 0;
    for (; n > 1; n -= 2, p += 2)
        sum += (uint32_t)(p[0] << 8 | p[1]);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return htons((uint16_t)~sum);
}

static int nic_index(void) { return (int)if_nametoindex(NIC); }

static void probe_send(struct probe *p)
{
    uint8_t frame[ETH_HLEN + 64] = {0};
    struct payload body = {htonl(MAGIC), 0, 0};
    for (int i = 0; i < 8; i++)
        ((uint8_t *)&body.seq)[i] = (uint8_t)(p->sent >> (56 - 8 * i));
    size_t n = 0;
    if (p->kind == ICMP) {
        struct icmphdr *h = (struct icmphdr *)frame;
        bool v6 = p->to.ss.ss_family == AF_INET6;
        h->type = v6 ? ICMP6_ECHO_REQUEST : ICMP_ECHO;
        h->un.echo.id = htons(0x4d4f);
        h->un.echo.sequence = htons((uint16_t)p->sent);
        n = sizeof *h;
        memcpy(frame + n, &body, sizeof body);
        n += sizeof body;
        if (!v6)
            h->checksum = checksum(frame, n);
    } else {
        if (p->kind == RAW) {
            memcpy(frame, p->header, ETH_HLEN);
            n = ETH_HLEN;
        }
        memcpy(frame + n, &body, sizeof body);
        n = p->kind == RAW ? 60 : n + sizeof body;
    }
    if (sendto(p->fd, frame, n, MSG_DONTWAIT, (struct sockaddr *)&p->to.ss, p->to.len) < 0) {
        p->errors++;
        p->last_error = errno;
    }
    p->sent++;
}

static void sink_readable(struct sink *s)
{
    uint8_t buf[2048];
    for (int i = 0; i < 64; i++) {
        ssize_t n = recv(s->fd, buf, sizeof buf, MSG_DONTWAIT);
        if (n < 0)
            return;
        size_t at = 0;
        if (s->kind == RAW)
            at = ETH_HLEN;
        if (s->kind == ICMP) {
            at = (size_t)(buf[0] & 15) * 4;
            if ((size_t)n < at + 8 || buf[at] != ICMP_ECHO)
                continue;
            at += 8;
        }
        struct payload body;
        if ((size_t)n < at + sizeof body)
            continue;
        memcpy(&body, buf + at, sizeof body);
        if (ntohl(body.magic) != MAGIC)
            continue;
        uint64_t seq = 0;
        for (int b = 0; b < 8; b++)
            seq = seq << 8 | ((uint8_t *)&body.seq)[b];
        int64_t now = now_ms();
        if (s->count == 0)
            s->first = seq;
        else if (seq <= s->last)
            s->out_of_order++;
        if (s->count > 0 && now - s->last_ms > s->max_gap)
            s->max_gap = now - s->last_ms;
        if (s->count == 0 || seq > s->last)
            s->last = seq;
        s->last_ms = now;
        s->count++;
    }
}

static void sink_status(const struct sink *s)
{
    uint64_t span = s->count ? s->last - s->first + 1 : 0;
    say("{\"count\":%llu,\"first\":%lld,\"last\":%lld,\"missing\":%llu,\"out_of_order\":%llu,\"max_gap_ms\":%lld}",
        (unsigned long long)s->count, s->count ? (long long)s->first : -1, s->count ? (long long)s->last : -1,
        (unsigned long long)(span > s->count ? span - s->count : 0), (unsigned long long)s->out_of_order,
        (long long)s->max_gap);
}

static struct sink *sink_find(enum kind kind, int number)
{
    for (int i = 0; i < MAX_SINKS; i++)
        if (sinks[i].used && sinks[i].kind == kind && sinks[i].number == number)
            return &sinks[i];
    return NULL;
}

// --- the pending command ---------------------------------------------------------

enum what { NOTHING, AWAIT_OPEN, AWAIT_TRY, AWAIT_ECHO, AWAIT_PING, AWAIT_SHELL };
static struct {
    enum what what;
    int64_t deadline;
    struct conn *conn;
    uint64_t records; // AWAIT_ECHO: how many records make it complete
    int fd;           // AWAIT_PING, AWAIT_SHELL
    pid_t pid;
    struct address to;
    unsigned sent, received, wanted;
    int64_t started, next, worst_rtt, timeout;
    int64_t sent_at[1024];
    bool at_line_start;
} pending;

static void ping_send(void)
{
    uint8_t packet[64] = {0};
    struct icmphdr *h = (struct icmphdr *)packet;
    bool v6 = pending.to.ss.ss_family == AF_INET6;
    h->type = v6 ? ICMP6_ECHO_REQUEST : ICMP_ECHO;
    h->un.echo.id = htons(0x7069);
    h->un.echo.sequence = htons((uint16_t)pending.sent);
    if (!v6)
        h->checksum = checksum(packet, sizeof packet);
    pending.sent_at[pending.sent % 1024] = now_ms();
    sendto(pending.fd, packet, sizeof packet, MSG_DONTWAIT, (struct sockaddr *)&pending.to.ss, pending.to.len);
    pending.sent++;
    pending.next = now_ms() + 50;
    pending.deadline = now_ms() + pending.timeout;
}

static void ping_readable(void)
{
    uint8_t buf[512];
    ssize_t n;
    while ((n = recv(pending.fd, buf, sizeof buf, MSG_DONTWAIT)) > 0) {
        bool v6 = pending.to.ss.ss_family == AF_INET6;
        size_t at = v6 ? 0 : (size_t)(buf[0] & 15) * 4;
        if ((size_t)n < at + 8)
            continue;
        struct icmphdr h;
        memcpy(&h, buf + at, sizeof h);
        if (h.type != (v6 ? ICMP6_ECHO_REPLY : ICMP_ECHOREPLY) || h.un.echo.id != htons(0x7069))
            continue;
        unsigned seq = ntohs(h.un.echo.sequence);
        if (seq >= pending.sent)
            continue;
        int64_t rtt = now_ms() - pending.sent_at[seq % 1024];
        if (rtt > pending.worst_rtt)
            pending.worst_rtt = rtt;
        pending.received++;
    }
}

// Passes the output of a shell command on. True when it has ended.
static bool shell_readable(void)
{
    char buf[1024];
    ssize_t n = read(pending.fd, buf, sizeof buf);
    if (n > 0) {
        put(buf, (size_t)n);
        pending.at_line_start = buf[n - 1] == '\n';
        return false;
    }
    return n == 0 || (errno != EAGAIN && errno != EINTR);
}

static void shell_end(bool timed_out)
{
    int status = 0;
    close(pending.fd);
    if (timed_out)
        kill(-pending.pid, SIGKILL);
    waitpid(pending.pid, &status, 0);
    if (!pending.at_line_start)
        put("\n", 1);
    pending.what = NOTHING;
    if (timed_out)
        fail("timeout");
    else if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        ok();
    else
        fail("exit %d", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

static void shell_start(const char *command, int timeout_ms)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0) {
        fail("pipe: %s", strerror(errno));
        return;
    }
    pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        dup2(fds[1], 1);
        dup2(fds[1], 2);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    close(fds[1]);
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    pending.what = AWAIT_SHELL;
    pending.fd = fds[0];
    pending.pid = pid;
    pending.at_line_start = true;
    pending.deadline = now_ms() + timeout_ms;
}

// Looks whether the pending command is done, and answers it if so.
static void pending_check(void)
{
    int64_t now = now_ms();
    struct conn *c = pending.conn;
    switch (pending.what) {
    case NOTHING:
        return;
    case AWAIT_OPEN:
        if (c->state == CONNECTING && now < pending.deadline)
            return;
        pending.what = NOTHING;
        if (c->state == CONNECTING)
            conn_end(c, TIMEOUT, ETIMEDOUT);
        conn_status(c);
        if (c->state == OPEN)
            ok();
        else
            fail("%s", state_names[c->state]);
        return;
    case AWAIT_TRY:
        if (c->state == CONNECTING && now < pending.deadline)
            return;
        pending.what = NOTHING;
        say("%s", c->state == OPEN ? "ok" : c->state == CONNECTING ? "timeout" : state_names[c->state]);
        conn_end(c, FREE, 0);
        ok();
        return;
    case AWAIT_ECHO:
        if (c->state == OPEN && c->received < pending.records && now < pending.deadline)
            return;
        pending.what = NOTHING;
        conn_status(c);
        if (c->received >= pending.records)
            ok();
        else
            fail("%s", c->state == OPEN ? "no echo" : state_names[c->state]);
        return;
    case AWAIT_PING:
        if (pending.sent < pending.wanted) {
            if (now >= pending.next)
                ping_send();
            return;
        }
        if (pending.received < pending.sent && now < pending.deadline)
            return;
        pending.what = NOTHING;
        close(pending.fd);
        say("{\"sent\":%u,\"received\":%u,\"max_rtt_ms\":%lld}", pending.sent, pending.received, (long long)pending.worst_rtt);
        ok();
        return;
    case AWAIT_SHELL:
        if (now >= pending.deadline)
            shell_end(true);
        return;
    }
}

static void await(enum what what, struct conn *c, int timeout_ms)
{
    pending.what = what;
    pending.conn = c;
    pending.deadline = now_ms() + timeout_ms;
    pending_check();
}

// --- commands ----------------------------------------------------------------------
// Each gets its arguments (argv[0] is its own name) and the rest of the line as text.

struct command {
    const char *name;
    int min_args, max_args;
    void (*run)(int argc, char **argv, const char *rest);
    const char *usage;
};

static void cmd_hello(int argc, char **argv, const char *rest)
{
    (void)argc, (void)argv, (void)rest;
    char boot[64] = "";
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY);
    ssize_t n = fd >= 0 ? read(fd, boot, 36) : 0;
    if (fd >= 0)
        close(fd);
    boot[n > 0 ? n : 0] = 0;
    say("{\"boot_id\":\"%s\",\"uptime_ms\":%lld}", boot, (long long)now_ms());
    ok();
}

static void cmd_ip(int argc, char **argv, const char *rest)
{
    (void)rest;
    char line[512];
    const char *v6 = strchr(argv[1], ':') ? "-6 " : "";
    int n = snprintf(line, sizeof line, "ip link set " NIC " up && ip %saddr replace %s dev " NIC, v6, argv[1]);
    if (argc > 2)
        snprintf(line + n, sizeof line - (size_t)n, " && ip %sroute replace default via %s dev " NIC, v6, argv[2]);
    shell_start(line, 10000);
}

static int nic_ethtool(void *command)
{
    struct ifreq r = {.ifr_data = command};
    snprintf(r.ifr_name, sizeof r.ifr_name, NIC);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int rc = ioctl(fd, SIOCETHTOOL, &r) < 0 ? errno : 0;
    close(fd);
    return rc;
}

// nic-queues N: how many pairs of queues the NIC uses, of those that it has.
static void cmd_nic_queues(int argc, char **argv, const char *rest)
{
    (void)argc, (void)rest;
    struct ethtool_channels channels = {.cmd = ETHTOOL_SCHANNELS, .combined_count = (uint32_t)atoi(argv[1])};
    int error = nic_ethtool(&channels);
    if (error)
        fail("%s", strerror(error));
    else
        ok();
}

static void cmd_shell(int argc, char **argv, const char *rest)
{
    (void)argc, (void)argv;
    shell_start(rest, 20000);
}

static void cmd_tcp_listen(int argc, char **argv, const char *rest)
{
    (void)argc, (void)rest;
    struct listener l = {.port = atoi(argv[1])};
    if (!parse_mode(argv[2], &l.mode, &l.interval_ms)) {
        fail("mode is busy, idle or server-speaks, with :INTERVAL_MS if you like, not %s", argv[2]);
        return;
    }
    struct address any;
    parse_address("::", l.port, &any); // a v6 socket serves v4 too
    l.fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int on = 1;
    setsockopt(l.fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (l.fd < 0 || bind(l.fd, (struct sockaddr *)&any.ss, any.len) < 0 || listen(l.fd, 128) < 0) {
        fail("listen on %d: %s", l.port, strerror(errno));
        close(l.fd);
        return;
    }
    for (int i = 0; i < MAX_LISTENERS; i++) {
        if (!listeners[i].port) {
            listeners[i] = l;
            ok();
            return;
        }
    }
    close(l.fd);
    fail("too many listeners");
}

static void cmd_tcp_connect(int argc, char **argv, const char *rest)
{
    (void)rest;
    struct address to;
    enum mode mode;
    int interval;
    if (conn_find(argv[1])) {
        fail("there is a connection %s", argv[1]);
        return;
    }
    if (!parse_address(argv[2], atoi(argv[3]), &to) || !parse_mode(argv[4], &mode, &interval)) {
        fail("bad address or mode");
        return;
    }
    struct conn *c = conn_start(argv[1], &to);
    if (!c) {
        fail("too many connections");
        return;
    }
    c->mode = mode;
    c->interval_ms = interval;
    snprintf(c->peer, sizeof c->peer, strchr(argv[2], ':') ? "[%s]:%s" : "%s:%s", argv[2], argv[3]);
    await(AWAIT_OPEN, c, argc > 5 ? atoi(argv[5]) : 5000);
}

static void cmd_tcp_try(int argc, char **argv, const char *rest)
{
    (void)rest;
    struct address to;
    if (!parse_address(argv[1], atoi(argv[2]), &to)) {
        fail("bad address %s", argv[1]);
        return;
    }
    struct conn *c = conn_start("", &to);
    if (c)
        await(AWAIT_TRY, c, argc > 3 ? atoi(argv[3]) : 2000);
    else
        fail("too many connections");
}

static struct conn *conn_or_fail(const char *id)
{
    struct conn *c = conn_find(id);
    if (!c)
        fail("no connection %s", id);
    return c;
}

static void cmd_tcp_status(int argc, char **argv, const char *rest)
{
    (void)rest;
    if (argc > 1) {
        struct conn *c = conn_or_fail(argv[1]);
        if (!c)
            return;
        conn_status(c);
    } else {
        for (int i = 0; i < MAX_CONNS; i++)
            if (conns[i].state != FREE)
                conn_status(&conns[i]);
    }
    ok();
}

static void cmd_tcp_mark(int argc, char **argv, const char *rest)
{
    (void)rest;
    if (argc > 1) {
        struct conn *c = conn_or_fail(argv[1]);
        if (!c)
            return;
        conn_mark(c);
    } else {
        for (int i = 0; i < MAX_CONNS; i++)
            if (conns[i].state != FREE)
                conn_mark(&conns[i]);
    }
    ok();
}

static void cmd_tcp_send(int argc, char **argv, const char *rest)
{
    (void)rest;
    struct conn *c = conn_or_fail(argv[1]);
    if (!c)
        return;
    uint64_t before = c->received;
    if (c->state == OPEN)
        conn_send_record(c);
    if (c->server) { // nobody echoes to the server: sending is all
        conn_status(c);
        ok();
        return;
    }
    pending.records = before + 1;
    await(AWAIT_ECHO, c, argc > 2 ? atoi(argv[2]) : 5000);
}

static void cmd_tcp_close(int argc, char **argv, const char *rest)
{
    (void)argc, (void)rest;
    struct conn *c = conn_or_fail(argv[1]);
    if (!c)
        return;
    conn_end(c, FREE, 0);
    ok();
}

static void cmd_tcp_unlisten(int argc, char **argv, const char *rest)
{
    (void)argc, (void)rest;
    for (int i = 0; i < MAX_LISTENERS; i++) {
        if (listeners[i].port == atoi(argv[1])) {
            close(listeners[i].fd);
            memset(&listeners[i], 0, sizeof listeners[i]);
            ok();
            return;
        }
    }
    fail("no listener on %s", argv[1]);
}

static void cmd_ping(int argc, char **argv, const char *rest)
{
    (void)rest;
    if (!parse_address(argv[1], 0, &pending.to)) {
        fail("bad address %s", argv[1]);
        return;
    }
    bool v6 = pending.to.ss.ss_family == AF_INET6;
    pending.fd = socket(pending.to.ss.ss_family, SOCK_RAW | SOCK_CLOEXEC, v6 ? (int)IPPROTO_ICMPV6 : (int)IPPROTO_ICMP);
    if (pending.fd < 0) {
        fail("socket: %s", strerror(errno));
        return;
    }
    pending.wanted = argc > 2 ? (unsigned)atoi(argv[2]) : 1;
    pending.timeout = argc > 3 ? atoi(argv[3]) : 2000;
    pending.sent = pending.received = 0;
    pending.worst_rtt = 0;
    pending.next = 0;
    await(AWAIT_PING, NULL, (int)pending.timeout);
}

static bool parse_mac(const char *text, uint8_t *mac)
{
    unsigned m[6];
    if (sscanf(text, "%x:%x:%x:%x:%x:%x", &m[0], &m[1], &m[2], &m[3], &m[4], &m[5]) != 6)
        return false;
    for (int i = 0; i < 6; i++)
        mac[i] = (uint8_t)m[i];
    return true;
}

static bool own_mac(uint8_t *mac)
{
    struct ifreq r = {0};
    snprintf(r.ifr_name, sizeof r.ifr_name, NIC);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool done = fd >= 0 && ioctl(fd, SIOCGIFHWADDR, &r) == 0;
    close(fd);
    memcpy(mac, r.ifr_hwaddr.sa_data, 6);
    return done;
}

// A packet socket's address: out of the one NIC.
static void nic_address(struct address *a)
{
    memset(a, 0, sizeof *a);
    struct sockaddr_ll *ll = (struct sockaddr_ll *)&a->ss;
    ll->sll_family = AF_PACKET;
    ll->sll_ifindex = nic_index();
    ll->sll_halen = 6;
    a->len = sizeof *ll;
}

static bool probe_socket(struct probe *p, char **argv)
{
    if (p->kind == RAW) { // ID ETHERTYPE DST_MAC RATE
        p->fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
        if (p->fd < 0 || !parse_mac(argv[3], p->header) || !own_mac(p->header + 6))
            return false;
        uint16_t type = htons((uint16_t)strtol(argv[2], NULL, 0));
        memcpy(p->header + 12, &type, 2);
        nic_address(&p->to);
        return true;
    }
    if (!parse_address(argv[2], p->kind == UDP ? atoi(argv[3]) : 0, &p->to))
        return false;
    bool v6 = p->to.ss.ss_family == AF_INET6;
    if (p->kind == UDP)
        p->fd = socket(p->to.ss.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    else
        p->fd = socket(p->to.ss.ss_family, SOCK_RAW | SOCK_CLOEXEC, v6 ? (int)IPPROTO_ICMPV6 : (int)IPPROTO_ICMP);
    return p->fd >= 0;
}

// KIND-probe-start ID ADDR PORT RATE | ID ADDR RATE | ID ETHERTYPE DST_MAC RATE
static void cmd_probe_start(int argc, char **argv, const char *rest)
{
    (void)rest;
    enum kind kind = argv[0][0] == 'u' ? UDP : argv[0][0] == 'i' ? ICMP : RAW;
    struct probe *p = NULL;
    for (int i = 0; i < MAX_PROBES; i++) {
        if (probes[i].used && !strcmp(probes[i].id, argv[1])) {
            fail("there is a probe %s", argv[1]);
            return;
        }
        if (!probes[i].used && !p)
            p = &probes[i];
    }
    if (!p) {
        fail("too many probes");
        return;
    }
    memset(p, 0, sizeof *p);
    p->kind = kind;
    snprintf(p->id, sizeof p->id, "%s", argv[1]);
    p->per_ms = atof(argv[argc - 1]) / 1000;
    if (!(p->per_ms > 0) || !probe_socket(p, argv)) {
        fail("bad address or rate");
        return;
    }
    p->started = now_ms();
    p->used = p->running = true;
    ok();
}

// probe-status ID, probe-stop ID: stop says the same once more and forgets it.
static void cmd_probe(int argc, char **argv, const char *rest)
{
    (void)argc, (void)rest;
    for (int i = 0; i < MAX_PROBES; i++) {
        struct probe *p = &probes[i];
        if (!p->used || strcmp(p->id, argv[1]))
            continue;
        say("{\"id\":\"%s\",\"sent\":%llu,\"errors\":%llu,\"last_error\":\"%s\"}", p->id, (unsigned long long)p->sent,
            (unsigned long long)p->errors, p->last_error ? strerror(p->last_error) : "");
        if (strstr(argv[0], "stop")) {
            close(p->fd);
            p->used = p->running = false;
        }
        ok();
        return;
    }
    fail("no probe %s", argv[1]);
}

// udp-sink PORT, icmp-sink, raw-sink ETHERTYPE; -count says what came, -clear starts over.
static void cmd_sink(int argc, char **argv, const char *rest)
{
    (void)rest;
    enum kind kind = argv[0][0] == 'u' ? UDP : argv[0][0] == 'i' ? ICMP : RAW;
    int number = argc > 1 ? (int)strtol(argv[1], NULL, 0) : 0;
    struct sink *s = sink_find(kind, number);
    if (!strstr(argv[0], "-sink")) {
        if (!s) {
            fail("no such sink");
            return;
        }
        if (strstr(argv[0], "-count")) {
            sink_readable(s);
            sink_status(s);
        } else {
            sink_readable(s);
            s->count = s->first = s->last = s->out_of_order = 0;
            s->max_gap = 0;
        }
        ok();
        return;
    }
    for (int i = 0; !s && i < MAX_SINKS; i++)
        if (!sinks[i].used)
            s = &sinks[i];
    if (!s || s->used) {
        fail(s ? "there is such a sink" : "too many sinks");
        return;
    }
    memset(s, 0, sizeof *s);
    s->kind = kind;
    s->number = number;
    struct address a;
    if (kind == UDP) {
        parse_address("::", number, &a);
        s->fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    } else if (kind == ICMP) {
        s->fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP);
        parse_address("0.0.0.0", 0, &a);
    } else {
        s->fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons((uint16_t)number));
        nic_address(&a);
        ((struct sockaddr_ll *)&a.ss)->sll_protocol = htons((uint16_t)number);
    }
    if (s->fd < 0 || bind(s->fd, (struct sockaddr *)&a.ss, a.len) < 0) {
        fail("socket: %s", strerror(errno));
        close(s->fd);
        return;
    }
    s->used = true;
    ok();
}

// raw-send HEX [COUNT]: the frame as it stands, for spoofing and malformed packets.
static void cmd_raw_send(int argc, char **argv, const char *rest)
{
    (void)rest;
    uint8_t frame[1600];
    size_t n = 0;
    for (const char *p = argv[1]; p[0] && p[1] && n < sizeof frame; p += 2) {
        unsigned byte;
        if (sscanf(p, "%2x", &byte) != 1) {
            fail("bad hex at %s", p);
            return;
        }
        frame[n++] = (uint8_t)byte;
    }
    struct address a;
    nic_address(&a);
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    int count = argc > 2 ? atoi(argv[2]) : 1, sent = 0;
    for (int i = 0; i < count; i++)
        sent += sendto(fd, frame, n, 0, (struct sockaddr *)&a.ss, a.len) == (ssize_t)n;
    close(fd);
    if (sent == count)
        ok();
    else
        fail("%d of %d sent: %s", sent, count, strerror(errno));
}

static void cmd_help(int argc, char **argv, const char *rest);
static const struct command commands[] = {
    {"hello", 0, 0, cmd_hello, ""},
    {"help", 0, 0, cmd_help, ""},
    {"ip", 1, 2, cmd_ip, "ADDR/LEN [GATEWAY]"},
    {"nic-queues", 1, 1, cmd_nic_queues, "N"},
    {"shell", 1, 99, cmd_shell, "COMMAND..."},
    {"tcp-listen", 2, 2, cmd_tcp_listen, "PORT busy|idle|server-speaks[:INTERVAL_MS]"},
    {"tcp-unlisten", 1, 1, cmd_tcp_unlisten, "PORT"},
    {"tcp-connect", 4, 5, cmd_tcp_connect, "ID ADDR PORT MODE[:INTERVAL_MS] [TIMEOUT_MS]"},
    {"tcp-try", 2, 3, cmd_tcp_try, "ADDR PORT [TIMEOUT_MS]"},
    {"tcp-status", 0, 1, cmd_tcp_status, "[ID]"},
    {"tcp-mark", 0, 1, cmd_tcp_mark, "[ID]"},
    {"tcp-send", 1, 2, cmd_tcp_send, "ID [TIMEOUT_MS]"},
    {"tcp-close", 1, 1, cmd_tcp_close, "ID"},
    {"ping", 1, 3, cmd_ping, "ADDR [COUNT [TIMEOUT_MS]]"},
    {"udp-probe-start", 4, 4, cmd_probe_start, "ID ADDR PORT RATE_PER_S"},
    {"icmp-probe-start", 3, 3, cmd_probe_start, "ID ADDR RATE_PER_S"},
    {"raw-probe-start", 4, 4, cmd_probe_start, "ID ETHERTYPE DST_MAC RATE_PER_S"},
    {"probe-status", 1, 1, cmd_probe, "ID"},
    {"probe-stop", 1, 1, cmd_probe, "ID"},
    {"udp-sink", 1, 1, cmd_sink, "PORT"},
    {"udp-count", 1, 1, cmd_sink, "PORT"},
    {"udp-clear", 1, 1, cmd_sink, "PORT"},
    {"icmp-sink", 0, 0, cmd_sink, ""},
    {"icmp-count", 0, 0, cmd_sink, ""},
    {"icmp-clear", 0, 0, cmd_sink, ""},
    {"raw-sink", 1, 1, cmd_sink, "ETHERTYPE"},
    {"raw-count", 1, 1, cmd_sink, "ETHERTYPE"},
    {"raw-clear", 1, 1, cmd_sink, "ETHERTYPE"},
    {"raw-send", 1, 2, cmd_raw_send, "HEX [COUNT]"},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void cmd_help(int argc, char **argv, const char *rest)
{
    (void)argc, (void)argv, (void)rest;
    for (int i = 0; i < N_COMMANDS; i++)
        say("%s %s", commands[i].name, commands[i].usage);
    ok();
}

// Takes one line: "ID COMMAND ARG...".
static void dispatch(char *line)
{
    char *argv[MAX_ARGS + 1], *save = NULL;
    char *id = strtok_r(line, " ", &save);
    if (!id)
        return;
    snprintf(request_id, sizeof request_id, "%s", id);
    char *name = strtok_r(NULL, " ", &save);
    if (!name) {
        fail("no command");
        return;
    }
    static char rest[4096];
    snprintf(rest, sizeof rest, "%s", save ? save : "");
    int argc = 0;
    argv[argc++] = name;
    for (char *a; argc < MAX_ARGS && (a = strtok_r(NULL, " ", &save));)
        argv[argc++] = a;
    for (int i = 0; i < N_COMMANDS; i++) {
        const struct command *c = &commands[i];
        if (strcmp(c->name, name))
            continue;
        if (argc - 1 < c->min_args || argc - 1 > c->max_args)
            fail("usage: %s %s", c->name, c->usage);
        else
            c->run(argc, argv, rest);
        return;
    }
    fail("no command %s; try help", name);
}

// --- the loop ------------------------------------------------------------------------

static char input[8192];
static size_t input_len;

// Runs the first whole line of the input, if there is one and nothing is pending.
static void input_run(void)
{
    char *end;
    while (pending.what == NOTHING && (end = memchr(input, '\n', input_len))) {
        static char line[sizeof input];
        size_t n = (size_t)(end - input);
        memcpy(line, input, n);
        line[n] = 0;
        input_len -= n + 1;
        memmove(input, end + 1, input_len);
        dispatch(line);
    }
}

static void input_readable(void)
{
    if (input_len == sizeof input)
        input_len = 0; // a line that long is none of ours
    ssize_t n = read(serial_fd, input + input_len, sizeof input - input_len);
    if (n > 0) {
        input_len += (size_t)n;
    } else if (listen_fd >= 0 && (n == 0 || (errno != EAGAIN && errno != EINTR))) {
        close(serial_fd);
        serial_fd = -1;
        input_len = 0;
    }
}

// Sends what is due; returns how long the loop may sleep, ms.
static int run_timers(void)
{
    int64_t now = now_ms(), wake = now + 1000;
    for (int i = 0; i < MAX_CONNS; i++) {
        struct conn *c = &conns[i];
        if (!conn_speaks(c))
            continue;
        if (now >= c->next_send) {
            conn_send_record(c);
            c->next_send = now + c->interval_ms;
        }
        if (c->next_send < wake)
            wake = c->next_send;
    }
    for (int i = 0; i < MAX_PROBES; i++) {
        struct probe *p = &probes[i];
        if (!p->running)
            continue;
        uint64_t due = (uint64_t)((double)(now - p->started) * p->per_ms);
        for (int burst = 0; p->sent < due && burst < 64; burst++)
            probe_send(p);
        double gap = 1 / p->per_ms;
        int64_t next = now + (gap < 1 ? 1 : (int64_t)gap);
        if (next < wake)
            wake = next;
    }
    if (pending.what != NOTHING) {
        if (pending.deadline < wake)
            wake = pending.deadline;
        if (pending.what == AWAIT_PING && pending.sent < pending.wanted && pending.next < wake)
            wake = pending.next;
    }
    return wake > now ? (int)(wake - now) : 0;
}

static void socket_open(const char *path)
{
    // Behind a veth pair nobody adds the checksums that its driver leaves out.
    struct ethtool_value off = {.cmd = ETHTOOL_STXCSUM};
    nic_ethtool(&off);
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    unlink(path);
    listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    serial_fd = -1;
    if (bind(listen_fd, (struct sockaddr *)&a, sizeof a) < 0 || listen(listen_fd, 16) < 0) {
        perror(path);
        exit(1);
    }
}

static void serial_open(const char *path)
{
    serial_fd = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (serial_fd < 0) {
        perror(path);
        exit(1);
    }
    struct termios t;
    if (tcgetattr(serial_fd, &t) == 0) {
        cfmakeraw(&t);
        t.c_cflag |= CLOCAL | CREAD;
        cfsetspeed(&t, B115200);
        tcsetattr(serial_fd, TCSANOW, &t);
    }
}

struct watch {
    enum { SERIAL, CALLER, CONN, LISTENER, SINK, PING, SHELL } what;
    int index;
};

static void handle(const struct watch *w, short events)
{
    switch (w->what) {
    case SERIAL:
        input_readable();
        break;
    case CALLER:
        serial_fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        break;
    case CONN:
        if (conns[w->index].fd >= 0)
            conn_ready(&conns[w->index], events);
        break;
    case LISTENER:
        listener_accept(&listeners[w->index]);
        break;
    case SINK:
        sink_readable(&sinks[w->index]);
        break;
    case PING:
        ping_readable();
        break;
    case SHELL:
        if (shell_readable())
            shell_end(false);
        break;
    }
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc > 1 && !strncmp(argv[1], "unix:", 5))
        socket_open(argv[1] + 5);
    else
        serial_open(argc > 1 ? argv[1] : "/dev/ttyS1");
    for (;;) {
        static struct pollfd fds[MAX_CONNS + MAX_LISTENERS + MAX_SINKS + 4];
        static struct watch watches[sizeof fds / sizeof *fds];
        nfds_t n = 0;
        int timeout = run_timers();
#define WATCH(FD, EVENTS, WHAT, INDEX)                                     \
    do {                                                                   \
        fds[n] = (struct pollfd){.fd = (FD), .events = (short)(EVENTS)};   \
        watches[n++] = (struct watch){WHAT, INDEX};                        \
    } while (0)
        if (serial_fd < 0)
            WATCH(listen_fd, POLLIN, CALLER, 0);
        else
            WATCH(serial_fd, POLLIN, SERIAL, 0);
        for (int i = 0; i < MAX_CONNS; i++)
            if (conns[i].state == CONNECTING || conns[i].state == OPEN)
                WATCH(conns[i].fd, conns[i].state == CONNECTING ? POLLOUT : POLLIN, CONN, i);
        for (int i = 0; i < MAX_LISTENERS; i++)
            if (listeners[i].port)
                WATCH(listeners[i].fd, POLLIN, LISTENER, i);
        for (int i = 0; i < MAX_SINKS; i++)
            if (sinks[i].used)
                WATCH(sinks[i].fd, POLLIN, SINK, i);
        if (pending.what == AWAIT_PING)
            WATCH(pending.fd, POLLIN, PING, 0);
        if (pending.what == AWAIT_SHELL)
            WATCH(pending.fd, POLLIN, SHELL, 0);
        if (poll(fds, n, timeout) > 0)
            for (nfds_t i = 0; i < n; i++)
                if (fds[i].revents)
                    handle(&watches[i], fds[i].revents);
        pending_check();
        input_run();
    }
}
