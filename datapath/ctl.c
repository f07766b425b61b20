/* SPDX-License-Identifier: Apache-2.0 */

/* One round: poll; take new clients; read one request of each client and answer it; give
 * the engine its turn; send events to those who subscribed and packets to those who trace.
 *
 *   bytes -> receive() -> admit() head, size, HELLO first -> handler (ctl_request.c) -> ctl_send()
 *
 * Whatever is refused is answered with the reason, counted, reported by an event (a few per
 * second), and logged once per kind.  Descriptors that came with a message are closed when it
 * has been answered.
 *
 * An answer that the client does not take at once is kept; until it is gone the client is
 * not read and gets neither events nor packets.  Events are never kept: the gap in their
 * numbers tells. */

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "ctl_private.h"
#include "engine.h"

#define REFUSALS_PER_SECOND 10 /* events; the rest is counted only */
#define EVENTS_PER_ROUND 1024
#define ACCEPT_PAUSE_MS 1000 /* when the process is out of descriptors */
#define TRACE_MS 5           /* a round at least so often while somebody traces */
#define EXCHANGE_MS 2        /* and while another engine is to take over */
#define KEEP_EVENTS_MS 1000  /* when it has */

static uint64_t monotonic_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* --- one request --- */

static const char *type_name(unsigned type)
{
    return type < CTL_N_TYPES && ctl_handlers[type].fn ? ctl_handlers[type].name : "request";
}

/* Is it a message that a handler may look at? */
static int admit(struct ctl_request *r)
{
    unsigned type = r->head.type;

    if (r->truncated)
        return ctl_refuse(r, -EMSGSIZE, "a message of more than %u bytes or %u descriptors",
                          MOAT_CTL_MAX, CTL_MAX_FDS);
    if (!r->body)
        return ctl_refuse(r, -EBADMSG, "a message of %zu bytes is too short for a head", r->len);
    if (r->head.version != MOAT_CTL_VERSION && type != MOAT_CTL_REPLACE)
        return ctl_refuse(r, -EPROTONOSUPPORT, "this engine speaks version %u, not %u",
                          MOAT_CTL_VERSION, r->head.version);
    if (type >= CTL_N_TYPES || !ctl_handlers[type].fn)
        return ctl_refuse(r, -EOPNOTSUPP, "there is no request of type %u", type);
    if (r->head.len != r->len)
        return ctl_refuse(r, -EBADMSG, "%zu bytes follow the head, which says %u", r->len,
                          r->head.len);
    if (r->len < ctl_handlers[type].len ||
        (r->len > ctl_handlers[type].len && !ctl_handlers[type].longer))
        return ctl_refuse(r, -EBADMSG, "%zu bytes, expected %s%zu", r->len,
                          ctl_handlers[type].longer ? "at least " : "", ctl_handlers[type].len);
    if (r->n_fds != ctl_handlers[type].n_fds)
        return ctl_refuse(r, -EBADF, "%u descriptors came along, expected %u", r->n_fds,
                          ctl_handlers[type].n_fds);
    if (type != MOAT_CTL_HELLO && type != MOAT_CTL_REPLACE && !r->client->greeted)
        return ctl_refuse(r, -EPROTO, "HELLO comes first");
    return 0;
}

/* Counts, reports and logs what was refused. */
static void report(struct moat_ctl_server *c, unsigned type, int rc, const char *why)
{
    struct moat_event ev = {.type = MOAT_EV_REFUSED};
    uint64_t second = monotonic_ms() / 1000;
    bool *logged =
        &c->logged[type < CTL_N_TYPES ? type : 0][-rc > 0 && -rc < CTL_N_ERRNOS ? -rc : 0];

    snprintf(ev.text, sizeof ev.text, "%s: %s", type_name(type), why);
    ev.value = (int64_t)++c->refused;
    if (second != c->refused_second) {
        c->refused_second = second;
        c->refused_this_second = 0;
    }
    if (c->refused_this_second++ < REFUSALS_PER_SECOND)
        moat_event_post(&c->engine->events, &ev, false);
    if (!*logged && c->log) {
        char text[400];

        snprintf(text, sizeof text, "control socket: refused %s: %s (further ones are counted)",
                 type_name(type), why);
        c->log(text);
    }
    *logged = true;
}

static void drop_client(struct moat_ctl_server *c, struct ctl_client *cl)
{
    ctl_trace_end(c, cl);
    close(cl->fd);
    if (cl->answer && cl->answer_fd >= 0)
        close(cl->answer_fd);
    free(cl->answer);
    *cl = (struct ctl_client){.fd = -1};
}

/* 0, or negative errno. */
static int send_message(int to, const struct moat_ctl_head *head, int fd)
{
    struct iovec iov = {(void *)(uintptr_t)head, sizeof *head + head->len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    ssize_t n;

    if (fd >= 0) {
        struct cmsghdr *cm;

        memset(&control, 0, sizeof control);
        msg.msg_control = control.buf;
        msg.msg_controllen = sizeof control.buf;
        cm = CMSG_FIRSTHDR(&msg);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cm), &fd, sizeof fd);
    }
    do {
        n = sendmsg(to, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

static bool is_full(int rc)
{
    return rc == -EAGAIN || rc == -EWOULDBLOCK || rc == -ENOBUFS;
}

int ctl_send(struct ctl_client *cl, const struct moat_ctl_head *head, int fd)
{
    int rc = send_message(cl->fd, head, fd);

    if (is_full(rc)) {
        cl->answer = malloc(sizeof *head + head->len);
        if (cl->answer) {
            memcpy(cl->answer, head, sizeof *head + head->len);
            cl->answer_fd = fd;
            return 0;
        }
    }
    if (fd >= 0)
        close(fd);
    return rc;
}

static void send_again(struct moat_ctl_server *c, struct ctl_client *cl)
{
    int rc = send_message(cl->fd, cl->answer, cl->answer_fd);

    if (is_full(rc))
        return;
    if (rc) {
        drop_client(c, cl);
        return;
    }
    if (cl->answer_fd >= 0)
        close(cl->answer_fd);
    free(cl->answer);
    cl->answer = NULL;
}

static void serve(struct moat_ctl_server *c, struct ctl_request *r)
{
    struct moat_ctl_head *head = (struct moat_ctl_head *)c->out;
    int rc = admit(r);

    if (!rc)
        rc = ctl_handlers[r->head.type].fn(c, r);
    if (!rc && r->later)
        return;
    if (rc) {
        report(c, r->head.type, rc, r->why);
        r->reply_len = strlen(r->why);
        memcpy(r->reply, r->why, r->reply_len);
        if (r->reply_fd >= 0)
            close(r->reply_fd);
        r->reply_fd = -1;
    }
    *head = (struct moat_ctl_head){.type = r->head.type | MOAT_CTL_REPLY,
                                   .version = r->head.type == MOAT_CTL_REPLACE ? r->head.version
                                                                               : MOAT_CTL_VERSION,
                                   .xid = r->head.xid,
                                   .len = (uint32_t)r->reply_len,
                                   .status = rc};
    if (ctl_send(r->client, head, r->reply_fd))
        drop_client(c, r->client);
}

static void take_fds(struct msghdr *msg, struct ctl_request *r)
{
    for (struct cmsghdr *cm = CMSG_FIRSTHDR(msg); cm; cm = CMSG_NXTHDR(msg, cm)) {
        size_t n = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(cm) + i * sizeof fd, sizeof fd);
            if (r->n_fds < CTL_MAX_FDS)
                r->fds[r->n_fds++] = fd;
            else
                close(fd);
        }
    }
}

/* 1: there is a request.  0: not now.  -1: the client has gone. */
static int receive(struct moat_ctl_server *c, struct ctl_client *cl, struct ctl_request *r)
{
    struct iovec iov = {c->in, sizeof c->in};
    union {
        char buf[CMSG_SPACE(CTL_MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.buf,
                         .msg_controllen = sizeof control.buf};
    ssize_t n = recvmsg(cl->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    *r = (struct ctl_request){.client = cl,
                              .len = (size_t)n,
                              .reply = c->out + sizeof(struct moat_ctl_head),
                              .reply_fd = -1,
                              .truncated = msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)};
    take_fds(&msg, r);
    if (!n && !r->n_fds)
        return -1;
    if (r->len >= sizeof r->head) {
        memcpy(&r->head, c->in, sizeof r->head);
        r->body = c->in + sizeof r->head;
        r->len -= sizeof r->head;
    }
    return 1;
}

static void read_client(struct moat_ctl_server *c, struct ctl_client *cl)
{
    struct ctl_request r;
    int rc = receive(c, cl, &r);

    if (rc < 0)
        drop_client(c, cl);
    if (rc <= 0)
        return;
    serve(c, &r);
    for (unsigned i = 0; i < r.n_fds; i++)
        close(r.fds[i]);
}

/* --- clients come --- */

static struct ctl_client *free_client(struct moat_ctl_server *c)
{
    for (unsigned i = 0; i < MOAT_CTL_MAX_CLIENTS; i++)
        if (c->clients[i].fd < 0)
            return &c->clients[i];
    return NULL;
}

static void accept_client(struct moat_ctl_server *c, uint64_t now)
{
    int fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct ctl_client *cl = free_client(c);
    socklen_t len = sizeof(struct ucred);
    struct ucred peer;

    if (fd < 0) {
        /* Out of descriptors: the socket stays readable, do not spin. */
        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            c->accept_at = now + ACCEPT_PAUSE_MS;
        return;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) || peer.uid != c->uid) {
        report(c, 0, -EACCES, "a connection of another user");
        close(fd);
    } else if (!cl) {
        report(c, 0, -EUSERS, "a connection: there are too many");
        close(fd);
    } else {
        *cl = (struct ctl_client){.fd = fd};
    }
}

/* --- events go --- */

/* All clients have lost their connection to the engine before this one: they will be back. */
static bool waits_for_subscribers(struct moat_ctl_server *c)
{
    for (unsigned i = 0; i < MOAT_CTL_MAX_CLIENTS; i++)
        if (c->clients[i].fd >= 0 && c->clients[i].subscribed)
            c->keep_until = 0;
    return monotonic_ms() < c->keep_until;
}

static void broadcast(struct moat_ctl_server *c)
{
    struct {
        struct moat_ctl_head head;
        struct moat_event event;
    } m = {.head = {.type = MOAT_CTL_EVENT, .version = MOAT_CTL_VERSION, .len = sizeof m.event}};

    if (c->keep_until && waits_for_subscribers(c))
        return;
    for (unsigned n = 0; n < EVENTS_PER_ROUND && moat_event_take(&c->engine->events, &m.event);
         n++) {
        for (unsigned i = 0; i < MOAT_CTL_MAX_CLIENTS; i++) {
            struct ctl_client *cl = &c->clients[i];
            int rc;

            if (cl->fd < 0 || !cl->subscribed || cl->answer)
                continue;
            rc = send_message(cl->fd, &m.head, -1);
            if (rc && !is_full(rc))
                drop_client(c, cl);
        }
    }
}

static void send_traced(struct moat_ctl_server *c)
{
    for (unsigned i = 0; c->n_traces && i < MOAT_CTL_MAX_CLIENTS; i++) {
        struct ctl_client *cl = &c->clients[i];

        if (cl->trace && !ctl_trace_send(cl))
            drop_client(c, cl);
    }
}

/* --- another engine --- */

static void answer_exchange(struct moat_ctl_server *c, struct ctl_client *cl, int rc,
                            const struct moat_ctl_replaced *done, const char *why)
{
    struct moat_ctl_head *head = (struct moat_ctl_head *)c->out;
    const void *body = rc ? (const void *)why : done;
    size_t len = rc ? strlen(why) : sizeof *done;

    cl->waits = false;
    *head = (struct moat_ctl_head){.type = MOAT_CTL_REPLACE | MOAT_CTL_REPLY,
                                   .version = cl->version,
                                   .xid = cl->xid,
                                   .len = (uint32_t)len,
                                   .status = rc};
    memcpy(head + 1, body, len);
    if (ctl_send(cl, head, -1))
        drop_client(c, cl);
}

static void go_on_exchanging(struct moat_ctl_server *c)
{
    struct moat_ctl_replaced done;
    char why[256] = "";
    int rc = c->exchange->end(&done, why, sizeof why);

    if (rc == -EAGAIN)
        return;
    c->exchanging = false;
    c->replaced = !rc;
    if (rc)
        report(c, MOAT_CTL_REPLACE, rc, why);
    for (unsigned i = 0; i < MOAT_CTL_MAX_CLIENTS; i++)
        if (c->clients[i].fd >= 0 && c->clients[i].waits)
            answer_exchange(c, &c->clients[i], rc, &done, why);
}

/* --- the round --- */

static void fill_polls(const struct moat_ctl_server *c, struct pollfd *p, uint64_t now)
{
    p[0] = (struct pollfd){.fd = now < c->accept_at ? -1 : c->listen_fd, .events = POLLIN};
    p[1] = (struct pollfd){.fd = c->engine->events.wake_fd, .events = POLLIN};
    for (unsigned i = 0; i < MOAT_CTL_MAX_CLIENTS; i++)
        p[2 + i] = (struct pollfd){.fd = c->clients[i].fd,
                                   .events = c->clients[i].answer ? POLLOUT : POLLIN};
}

static void drain(int wake_fd)
{
    uint64_t n;

    while (read(wake_fd, &n, sizeof n) > 0)
        ;
}

bool moat_ctl_run_once(struct moat_ctl_server *c, int timeout_ms)
{
    struct pollfd p[2 + MOAT_CTL_MAX_CLIENTS];
    uint64_t now = monotonic_ms();
    uint64_t left = c->turn_at > now ? c->turn_at - now : 0;

    /* Packet threads do not wake this one, and a trace's ring is short. */
    if (c->n_traces && left > TRACE_MS)
        left = TRACE_MS;
    if (c->exchanging && left > EXCHANGE_MS)
        left = EXCHANGE_MS;
    if (timeout_ms < 0 || left < (uint64_t)timeout_ms)
        timeout_ms = (int)left;
    fill_polls(c, p, now);
    if (poll(p, 2 + MOAT_CTL_MAX_CLIENTS, timeout_ms) > 0) {
        for (unsigned i = 0; i < MOAT_CTL_MAX_CLIENTS; i++) {
            if (!p[2 + i].revents)
                continue;
            if (c->clients[i].answer)
                send_again(c, &c->clients[i]);
            else
                read_client(c, &c->clients[i]);
        }
        if (p[1].revents)
            drain(p[1].fd);
        if (p[0].revents)
            accept_client(c, monotonic_ms());
    }
    now = monotonic_ms();
    if (now >= c->turn_at) {
        moat_engine_turn(c->engine);
        c->turn_at = now + MOAT_CTL_TURN_MS;
    }
    broadcast(c);
    send_traced(c);
    /* Last: nobody waits for what this round has to say. */
    if (c->exchanging)
        go_on_exchanging(c);
    return !c->replaced;
}

/* --- life --- */

static int unix_address(struct sockaddr_un *a, const char *path, const char *suffix, char *err,
                        size_t err_size)
{
    memset(a, 0, sizeof *a);
    a->sun_family = AF_UNIX;
    if (snprintf(a->sun_path, sizeof a->sun_path, "%s%s", path, suffix) >=
        (int)sizeof a->sun_path) {
        snprintf(err, err_size, "%s: too long for a socket's path", path);
        return -1;
    }
    return 0;
}

/* False if there is something at path that is not a dead process's socket. */
static bool may_replace(const struct sockaddr_un *at, char *err, size_t err_size)
{
    struct stat st;
    int fd, rc;

    if (lstat(at->sun_path, &st))
        return true;
    if (!S_ISSOCK(st.st_mode)) {
        snprintf(err, err_size, "%s: is there and is not a socket", at->sun_path);
        return false;
    }
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    rc = connect(fd, (const struct sockaddr *)at, sizeof *at) ? errno : 0;
    if (fd >= 0)
        close(fd);
    if (rc == ECONNREFUSED || rc == ENOENT)
        return true;
    snprintf(err, err_size, "%s: is served by another process", at->sun_path);
    return false;
}

/* The socket gets its mode under another name, and its name when it is ready. */
static int listen_at(const struct sockaddr_un *at, const struct sockaddr_un *draft, char *err,
                     size_t err_size)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        goto fail;
    unlink(draft->sun_path);
    if (bind(fd, (const struct sockaddr *)draft, sizeof *draft))
        goto fail;
    if (chmod(draft->sun_path, 0600) || listen(fd, MOAT_CTL_MAX_CLIENTS) ||
        rename(draft->sun_path, at->sun_path))
        goto fail_bound;
    return fd;

fail_bound:
    unlink(draft->sun_path);
fail:
    snprintf(err, err_size, "%s: %s", at->sun_path, strerror(errno));
    if (fd >= 0)
        close(fd);
    return -1;
}

struct moat_ctl_server *moat_ctl_create(const struct moat_ctl_conf *conf, char *err,
                                        size_t err_size)
{
    struct sockaddr_un at, draft;
    struct moat_ctl_server *c;

    if (unix_address(&at, conf->path, "", err, err_size) ||
        unix_address(&draft, conf->path, ".new", err, err_size) ||
        (!conf->listen_fd && !may_replace(&at, err, err_size)))
        return NULL;
    c = aligned_alloc(16, (sizeof *c + 15) / 16 * 16);
    if (!c) {
        snprintf(err, err_size, "out of memory");
        return NULL;
    }
    memset(c, 0, sizeof *c);
    c->engine = conf->engine;
    c->uid = conf->uid;
    c->log = conf->log;
    c->exchange = conf->exchange;
    c->keep_until = conf->listen_fd ? monotonic_ms() + KEEP_EVENTS_MS : 0;
    memcpy(c->path, at.sun_path, sizeof c->path);
    for (unsigned i = 0; i < MOAT_CTL_MAX_CLIENTS; i++)
        c->clients[i].fd = -1;
    c->listen_fd = conf->listen_fd ? conf->listen_fd : listen_at(&at, &draft, err, err_size);
    if (c->listen_fd < 0) {
        free(c);
        return NULL;
    }
    return c;
}

int moat_ctl_listen_fd(const struct moat_ctl_server *c)
{
    return c->listen_fd;
}

void moat_ctl_destroy(struct moat_ctl_server *c)
{
    if (!c)
        return;
    for (unsigned i = 0; i < MOAT_CTL_MAX_CLIENTS; i++)
        if (c->clients[i].fd >= 0)
            drop_client(c, &c->clients[i]);
    close(c->listen_fd);
    if (!c->replaced)
        unlink(c->path);
    free(c);
}
