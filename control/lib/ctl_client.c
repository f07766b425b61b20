/* SPDX-License-Identifier: Apache-2.0 */

/* One SOCK_SEQPACKET connection to the fast path.  A packet is a whole message,
 * so there is no reassembly: a message of the wrong length is an error of the
 * connection, which is then dead (its answers can no longer be trusted to
 * belong to our requests).  A refusal (status below zero) is no such error. */

#include "ctl_client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "moat/ruleset.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

struct moat_ctl {
    int fd;
    int timeout_ms;
    bool dead;
    bool stream; /* subscribed or tracing: no more requests */
    bool asked;  /* for another engine; the answer is due */
    uint32_t xid;
    struct moat_ctl_hello hello;
    char error[256];
    _Alignas(16) uint8_t buf[MOAT_CTL_MAX];
};

static int fail(struct moat_ctl *c, int err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static int fail(struct moat_ctl *c, int err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    if (c)
        vsnprintf(c->error, sizeof c->error, fmt, ap);
    va_end(ap);
    return err;
}

/* The connection is of no more use. */
#define DIE(C, ERR, ...) ((C)->dead = true, fail(C, ERR, __VA_ARGS__))

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Waits until the socket is ready or the deadline has passed. */
static int wait_ready(struct moat_ctl *c, short events, int64_t deadline)
{
    for (;;) {
        struct pollfd p = {.fd = c->fd, .events = events};
        int64_t left = deadline - now_ms();
        int n = poll(&p, 1, left > 0 ? (int)left : 0);

        if (n > 0)
            return 0;
        if (n < 0 && errno != EINTR)
            return DIE(c, -errno, "poll: %s", strerror(errno));
        if (n == 0 || left <= 0)
            return DIE(c, -ETIMEDOUT, "no answer within %d ms", c->timeout_ms);
    }
}

static int send_message(struct moat_ctl *c, enum moat_ctl_type type, const void *body, size_t len,
                        int fd, int64_t deadline)
{
    struct moat_ctl_head head = {
        .type = type, .version = MOAT_CTL_VERSION, .xid = ++c->xid, .len = (uint32_t)len};
    struct iovec iov[2] = {{&head, sizeof head}, {(void *)(uintptr_t)body, len}};
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = len ? 2 : 1};

    if (len > MOAT_CTL_MAX - sizeof head)
        return fail(c, -EMSGSIZE, "request of %zu bytes is too long", len);
    if (fd >= 0) {
        memset(&control, 0, sizeof control);
        msg.msg_control = control.buf;
        msg.msg_controllen = sizeof control.buf;
        struct cmsghdr *cm = CMSG_FIRSTHDR(&msg);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cm), &fd, sizeof fd);
    }
    for (;;) {
        if (sendmsg(c->fd, &msg, MSG_NOSIGNAL) >= 0)
            return 0;
        if (errno == EAGAIN || errno == ENOBUFS) {
            int rc = wait_ready(c, POLLOUT, deadline);
            if (rc)
                return rc;
        } else if (errno != EINTR) {
            return DIE(c, -errno, "sending to the fast path: %s", strerror(errno));
        }
    }
}

/* Takes the one descriptor of a message, closes any more. */
static int take_fd(struct msghdr *msg)
{
    int fd = -1;

    for (struct cmsghdr *cm = CMSG_FIRSTHDR(msg); cm; cm = CMSG_NXTHDR(msg, cm)) {
        if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int f;
            memcpy(&f, CMSG_DATA(cm) + i * sizeof f, sizeof f);
            if (fd < 0)
                fd = f;
            else
                close(f);
        }
    }
    return fd;
}

/* The one answer that whoever installed new programs can read of an old engine. */
static bool is_for_all_versions(const struct moat_ctl_head *head)
{
    return head->type == (MOAT_CTL_REPLACE | MOAT_CTL_REPLY);
}

/* Reads one message into c->buf.  1 and its head and body, 0 if there is none
 * now, or an error. */
static int recv_message(struct moat_ctl *c, struct moat_ctl_head *head, struct moat_ctl_reply *r)
{
    struct iovec iov = {c->buf, sizeof c->buf};
    union {
        char buf[CMSG_SPACE(4 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.buf,
                         .msg_controllen = sizeof control.buf};
    ssize_t n;

    do {
        n = recvmsg(c->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    if (n < 0)
        return DIE(c, -errno, "reading from the fast path: %s", strerror(errno));

    int fd = take_fd(&msg);
    if (n == 0)
        return DIE(c, -ECONNRESET, "the fast path closed the connection");
    if ((size_t)n < sizeof *head || (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
        if (fd >= 0)
            close(fd);
        return DIE(c, -EPROTO, "a truncated message from the fast path (%zd bytes)", n);
    }
    memcpy(head, c->buf, sizeof *head);
    if (head->len != (size_t)n - sizeof *head ||
        (head->version != MOAT_CTL_VERSION && !is_for_all_versions(head))) {
        if (fd >= 0)
            close(fd);
        return head->version != MOAT_CTL_VERSION
                   ? DIE(c, -EPROTONOSUPPORT, "the fast path speaks version %u, this program %u",
                         head->version, MOAT_CTL_VERSION)
                   : DIE(c, -EPROTO,
                         "a malformed message from the fast path (type %u, %u of %zd bytes)",
                         head->type, head->len, n);
    }
    r->body = c->buf + sizeof *head;
    r->len = head->len;
    r->fd = fd;
    return 1;
}

static void drop_fd(struct moat_ctl_reply *r)
{
    if (r->fd >= 0)
        close(r->fd);
    r->fd = -1;
}

/* Is what was received the answer to our last request, and no refusal? */
static int check_answer(struct moat_ctl *c, enum moat_ctl_type type,
                        const struct moat_ctl_head *head, struct moat_ctl_reply *r)
{
    int n = r->len < 200 ? (int)r->len : 200;

    if (head->type != (type | MOAT_CTL_REPLY) || head->xid != c->xid) {
        drop_fd(r);
        return DIE(c, -EPROTO, "answer %#x/%u to request %#x/%u", head->type, head->xid, type,
                   c->xid);
    }
    if (head->status >= 0)
        return 0;
    drop_fd(r);
    return n ? fail(c, head->status, "%.*s", n, (const char *)r->body)
             : fail(c, head->status, "refused: %s", strerror(-head->status));
}

int moat_ctl_call(struct moat_ctl *c, enum moat_ctl_type type, const void *body, size_t len, int fd,
                  struct moat_ctl_reply *reply)
{
    struct moat_ctl_reply local, *r = reply ? reply : &local;
    struct moat_ctl_head head;
    int64_t deadline;
    int rc, n;

    *r = (struct moat_ctl_reply){.fd = -1};
    if (moat_ctl_is_dead(c))
        return -ENOTCONN;
    if (c->stream || c->asked)
        return fail(c, -EBUSY, "this connection is for %s",
                    c->asked ? "the replacement of the engine" : "events or traced packets");
    deadline = now_ms() + c->timeout_ms;
    rc = send_message(c, type, body, len, fd, deadline);
    while (!rc && !(n = recv_message(c, &head, r)))
        rc = wait_ready(c, POLLIN, deadline);
    if (!rc)
        rc = n < 0 ? n : check_answer(c, type, &head, r);
    if (!reply)
        drop_fd(r);
    return rc;
}

/* A call whose reply has no descriptor and exactly `size` bytes, copied to out. */
static int call_fixed(struct moat_ctl *c, enum moat_ctl_type type, const void *body, size_t len,
                      void *out, size_t size)
{
    struct moat_ctl_reply r;
    int rc = moat_ctl_call(c, type, body, len, -1, &r);

    if (rc)
        return rc;
    if (r.fd >= 0)
        close(r.fd);
    if (r.len != size)
        return DIE(c, -EPROTO, "reply %u of %zu bytes, expected %zu", type, r.len, size);
    if (size)
        memcpy(out, r.body, size);
    return 0;
}

int moat_ctl_hello_again(struct moat_ctl *c)
{
    uint32_t version = MOAT_CTL_VERSION;
    int rc = call_fixed(c, MOAT_CTL_HELLO, &version, sizeof version, &c->hello, sizeof c->hello);

    if (rc)
        return rc;
    c->hello.engine[sizeof c->hello.engine - 1] = '\0';
    c->hello.mapping[sizeof c->hello.mapping - 1] = '\0';
    c->hello.file[sizeof c->hello.file - 1] = '\0';
    if (c->hello.version != MOAT_CTL_VERSION)
        return DIE(c, -EPROTONOSUPPORT, "the fast path speaks version %u, this program %u",
                   c->hello.version, MOAT_CTL_VERSION);
    return 0;
}

static int open_connection(const char *path, int timeout_ms, bool greet, struct moat_ctl **cp,
                           char *why, size_t why_size)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    struct moat_ctl *c;
    int rc;

    *cp = NULL;
    c = calloc(1, sizeof *c);
    if (!c)
        return -ENOMEM;
    c->timeout_ms = timeout_ms > 0 ? timeout_ms : MOAT_CTL_TIMEOUT_MS;
    c->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        rc = fail(c, -errno, "socket: %s", strerror(errno));
        goto out;
    }
    if (strlen(path) >= sizeof sun.sun_path) {
        rc = fail(c, -ENAMETOOLONG, "%s: name of a socket is too long", path);
        goto out;
    }
    strcpy(sun.sun_path, path);
    if (connect(c->fd, (struct sockaddr *)&sun, sizeof sun)) {
        rc = fail(c, -errno, "%s: %s", path, strerror(errno));
        goto out;
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    rc = greet ? moat_ctl_hello_again(c) : 0;
    if (!rc) {
        *cp = c;
        return 0;
    }
out:
    if (why && why_size)
        snprintf(why, why_size, "%s", c->error);
    moat_ctl_close(c);
    return rc;
}

int moat_ctl_open(const char *path, int timeout_ms, struct moat_ctl **cp, char *why,
                  size_t why_size)
{
    return open_connection(path, timeout_ms, true, cp, why, why_size);
}

int moat_ctl_connect(const char *path, int timeout_ms, struct moat_ctl **cp, char *why,
                     size_t why_size)
{
    return open_connection(path, timeout_ms, false, cp, why, why_size);
}

void moat_ctl_close(struct moat_ctl *c)
{
    if (c) {
        if (c->fd >= 0)
            close(c->fd);
        free(c);
    }
}

const struct moat_ctl_hello *moat_ctl_hello(const struct moat_ctl *c)
{
    return &c->hello;
}

int moat_ctl_fd(const struct moat_ctl *c)
{
    return c->fd;
}

bool moat_ctl_is_dead(const struct moat_ctl *c)
{
    return !c || c->dead;
}

bool moat_ctl_has_ended(const struct moat_ctl *c)
{
    struct pollfd p = {.fd = c ? c->fd : -1};

    return moat_ctl_is_dead(c) || (poll(&p, 1, 0) > 0 && p.revents & (POLLHUP | POLLERR));
}

const char *moat_ctl_error(const struct moat_ctl *c)
{
    return c ? c->error : "not connected";
}

/* --- another engine --------------------------------------------------------- */

int moat_ctl_replace(struct moat_ctl *c, const char *file)
{
    struct moat_ctl_replace body = {.file = ""};
    size_t n = strlen(file);
    int rc;

    if (moat_ctl_is_dead(c))
        return -ENOTCONN;
    if (c->stream || c->asked)
        return fail(c, -EBUSY, "this connection is not for requests");
    if (n >= sizeof body.file)
        return fail(c, -ENAMETOOLONG, "%s: a name of %zu bytes is too long", file, n);
    memcpy(body.file, file, n);
    rc = send_message(c, MOAT_CTL_REPLACE, &body, sizeof body, -1, now_ms() + c->timeout_ms);
    c->asked = !rc;
    return rc;
}

int moat_ctl_replaced(struct moat_ctl *c, int timeout_ms, struct moat_ctl_replaced *out)
{
    struct pollfd p = {.events = POLLIN};
    struct moat_ctl_reply r = {.fd = -1};
    struct moat_ctl_head head;
    int n, rc;

    if (moat_ctl_is_dead(c))
        return -ENOTCONN;
    if (!c->asked)
        return fail(c, -EINVAL, "nobody asked for another engine");
    p.fd = c->fd;
    if (poll(&p, 1, timeout_ms) <= 0)
        return 0;
    n = recv_message(c, &head, &r);
    if (n <= 0)
        return n;
    rc = check_answer(c, MOAT_CTL_REPLACE, &head, &r);
    drop_fd(&r);
    c->asked = false;
    if (rc)
        return rc;
    if (r.len != sizeof *out)
        return DIE(c, -EPROTO, "reply %u of %zu bytes, expected %zu", MOAT_CTL_REPLACE, r.len,
                   sizeof *out);
    memcpy(out, r.body, sizeof *out);
    out->engine[sizeof out->engine - 1] = '\0';
    return DIE(c, 1, "another engine has taken over");
}

/* --- slots ------------------------------------------------------------------ */

/* Fills a name field; too long a name is refused, never cut. */
static int put_name(struct moat_ctl *c, char field[MOAT_ID_MAX], const char *name)
{
    size_t n = strlen(name);

    memset(field, 0, MOAT_ID_MAX);
    if (moat_ctl_is_dead(c))
        return -ENOTCONN;
    if (n >= MOAT_ID_MAX)
        return fail(c, -ENAMETOOLONG, "vNIC id of %zu characters is too long", n);
    memcpy(field, name, n);
    return 0;
}

static int call_vnic(struct moat_ctl *c, enum moat_ctl_type type, const char *vnic, int fd,
                     struct moat_ctl_reply *r)
{
    struct moat_ctl_vnic body;
    int rc = put_name(c, body.vnic, vnic);

    return rc ? rc : moat_ctl_call(c, type, &body, sizeof body, fd, r);
}

int moat_ctl_claim(struct moat_ctl *c, const struct moat_slot_conf *conf)
{
    return moat_ctl_call(c, MOAT_CTL_CLAIM, conf, sizeof *conf, -1, NULL);
}

int moat_ctl_release(struct moat_ctl *c, const char *vnic)
{
    return call_vnic(c, MOAT_CTL_RELEASE, vnic, -1, NULL);
}

int moat_ctl_set_state(struct moat_ctl *c, const struct moat_ctl_state *s)
{
    return moat_ctl_call(c, MOAT_CTL_STATE, s, sizeof *s, -1, NULL);
}

int moat_ctl_handed_over(struct moat_ctl *c, const char *vnic)
{
    return call_vnic(c, MOAT_CTL_HANDED_OVER, vnic, -1, NULL);
}

int moat_ctl_flush(struct moat_ctl *c, const char *vnic)
{
    return call_vnic(c, MOAT_CTL_FLUSH, vnic, -1, NULL);
}

/* --- lists ------------------------------------------------------------------ */

/* Collects a list that comes in pages.  `first` points into `ask`. */
static int list(struct moat_ctl *c, enum moat_ctl_type type, void *ask, size_t ask_len,
                uint32_t *first, size_t elem, void **out, size_t *n_out)
{
    uint8_t *all = NULL;
    size_t n = 0;
    int rc;

    *out = NULL;
    *n_out = 0;
    do {
        struct moat_ctl_list_reply lr;
        struct moat_ctl_reply r;

        rc = moat_ctl_call(c, type, ask, ask_len, -1, &r);
        if (rc)
            break;
        if (r.fd >= 0)
            close(r.fd);
        if (r.len < sizeof lr) {
            rc = DIE(c, -EPROTO, "list %u of %zu bytes", type, r.len);
            break;
        }
        memcpy(&lr, r.body, sizeof lr);
        if ((r.len - sizeof lr) / elem != lr.n || (r.len - sizeof lr) % elem ||
            (lr.next && lr.next <= *first)) {
            rc = DIE(c, -EPROTO, "list %u: %u elements in %zu bytes, next %u", type, lr.n, r.len,
                     lr.next);
            break;
        }
        if (lr.n) {
            uint8_t *bigger = realloc(all, (n + lr.n) * elem);
            if (!bigger) {
                rc = fail(c, -ENOMEM, "out of memory");
                break;
            }
            all = bigger;
            memcpy(all + n * elem, (const uint8_t *)r.body + sizeof lr, lr.n * elem);
            n += lr.n;
        }
        *first = lr.next;
    } while (*first);
    if (rc) {
        free(all);
        return rc;
    }
    *out = all;
    *n_out = n;
    return 0;
}

/* Strings from the engine end where their field ends. */
#define END(FIELD) ((FIELD)[sizeof(FIELD) - 1] = '\0')

int moat_ctl_slots(struct moat_ctl *c, struct moat_slot_info **out, size_t *n)
{
    struct moat_ctl_list ask = {0};
    void *p;
    int rc =
        list(c, MOAT_CTL_SLOT_LIST, &ask, sizeof ask, &ask.first, sizeof **out, &p, n);

    *out = p;
    for (size_t i = 0; !rc && i < *n; i++) {
        struct moat_slot_conf *conf = &(*out)[i].conf;
        END(conf->vnic);
        END(conf->vm);
        END(conf->network);
        END(conf->path);
        if (conf->n_addrs > MOAT_ADDRS_MAX)
            conf->n_addrs = MOAT_ADDRS_MAX;
    }
    return rc;
}

int moat_ctl_ports(struct moat_ctl *c, struct moat_port_info **out, size_t *n)
{
    struct moat_ctl_list ask = {0};
    void *p;
    int rc =
        list(c, MOAT_CTL_PORT_LIST, &ask, sizeof ask, &ask.first, sizeof **out, &p, n);

    *out = p;
    for (size_t i = 0; !rc && i < *n; i++) {
        END((*out)[i].path);
        END((*out)[i].vnic);
    }
    return rc;
}

int moat_ctl_rule_hits(struct moat_ctl *c, const char *vnic, struct moat_rule_hit **out, size_t *n)
{
    struct moat_ctl_hits ask = {.first = 0};
    void *p;
    int rc = put_name(c, ask.vnic, vnic);

    *out = NULL;
    *n = 0;
    if (rc)
        return rc;
    rc = list(c, MOAT_CTL_RULE_HITS, &ask, sizeof ask, &ask.first, sizeof **out, &p, n);
    *out = p;
    return rc;
}

int moat_ctl_counters(struct moat_ctl *c, const char *vnic, uint64_t out[MOAT_N_COUNTERS])
{
    struct moat_ctl_vnic body;
    int rc = put_name(c, body.vnic, vnic);

    return rc ? rc
              : call_fixed(c, MOAT_CTL_COUNTERS, &body, sizeof body, out,
                           MOAT_N_COUNTERS * sizeof *out);
}

/* --- rulesets --------------------------------------------------------------- */

int moat_ctl_ruleset_put(struct moat_ctl *c, const char *vnic, const void *blob, size_t size)
{
    if (!size || size > MOAT_RULESET_VNIC_MAX)
        return fail(c, -EMSGSIZE, "a ruleset of %zu bytes", size);
    int fd = memfd_create("moat-ruleset", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return fail(c, -errno, "memfd: %s", strerror(errno));

    int rc = 0;
    size_t done = 0;
    while (done < size) {
        ssize_t n = write(fd, (const uint8_t *)blob + done, size - done);
        if (n < 0 && errno != EINTR) {
            rc = fail(c, -errno, "memfd: %s", strerror(errno));
            goto out;
        }
        done += n > 0 ? (size_t)n : 0;
    }
    if (fcntl(fd, F_ADD_SEALS, SEALS | F_SEAL_SEAL)) {
        rc = fail(c, -errno, "sealing: %s", strerror(errno));
        goto out;
    }
    rc = call_vnic(c, MOAT_CTL_RULESET, vnic, fd, NULL);
out:
    close(fd);
    return rc;
}

int moat_ctl_ruleset_get(struct moat_ctl *c, const char *vnic, void **blob, size_t *size)
{
    struct moat_ctl_reply r;
    struct stat st;
    uint8_t *p = NULL;

    *blob = NULL;
    *size = 0;
    int rc = call_vnic(c, MOAT_CTL_RULESET_GET, vnic, -1, &r);
    if (rc)
        return rc;
    if (r.fd < 0)
        return fail(c, -ENOENT, "the slot has no ruleset");
    int seals = fcntl(r.fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS) {
        rc = fail(c, -EPROTO, "the ruleset's memory is not sealed");
    } else if (fstat(r.fd, &st) || st.st_size <= 0 || st.st_size > MOAT_RULESET_VNIC_MAX) {
        rc = fail(c, -EPROTO, "a ruleset of a bad size");
    } else if (!(p = malloc((size_t)st.st_size))) {
        rc = fail(c, -ENOMEM, "out of memory");
    } else if (pread(r.fd, p, (size_t)st.st_size, 0) != st.st_size) {
        rc = fail(c, -EIO, "reading the ruleset: %s", strerror(errno));
        free(p);
    } else {
        *blob = p;
        *size = (size_t)st.st_size;
    }
    close(r.fd);
    return rc;
}

/* --- sessions --------------------------------------------------------------- */

void moat_ctl_page_init(struct moat_ctl_page *page, const char *vnic, uint64_t since_s)
{
    memset(page, 0, sizeof *page);
    snprintf(page->ask.vnic, sizeof page->ask.vnic, "%s", vnic);
    page->ask.since_s = since_s;
}

int moat_ctl_sessions(struct moat_ctl *c, struct moat_ctl_page *page)
{
    struct moat_ctl_sessions_reply sr;
    struct moat_ctl_reply r;

    if (page->started && !page->ask.cursor)
        return 0;
    int rc = moat_ctl_call(c, MOAT_CTL_SESSIONS, &page->ask, sizeof page->ask, -1, &r);
    if (rc)
        return rc;
    if (r.fd >= 0)
        close(r.fd);
    if (r.len < sizeof sr)
        return DIE(c, -EPROTO, "sessions in %zu bytes", r.len);
    memcpy(&sr, r.body, sizeof sr);
    const uint8_t *p = (const uint8_t *)r.body + sizeof sr;
    size_t left = r.len - sizeof sr, off = 0;
    for (uint32_t i = 0; i < sr.n; i++) {
        size_t n = moat_ctl_frame_len(p + off, left - off);
        if (!n)
            return DIE(c, -EPROTO, "session record %u of %u is malformed", i, sr.n);
        off += n;
    }
    if (off != left)
        return DIE(c, -EPROTO, "%zu bytes after %u session records", left - off, sr.n);
    if (!page->started)
        page->now_s = sr.now_s;
    page->started = true;
    page->ask.cursor = sr.cursor;
    page->frames = p;
    page->left = left;
    page->n = sr.n;
    memcpy(page->vnic, sr.vnic, sizeof page->vnic);
    END(page->vnic);
    return 1;
}

size_t moat_ctl_frame_len(const uint8_t *p, size_t n)
{
    if (n < 4 + 2 || p[4] != MOAT_SES_VERSION)
        return 0;
    unsigned len = p[5];
    if ((len != MOAT_SES_LEN4 && len != MOAT_SES_LEN6) || n < 4 + len)
        return 0;
    return 4 + len;
}

bool moat_ctl_frame_next(const uint8_t **p, size_t *left, struct moat_ses_rec *rec)
{
    size_t n = moat_ctl_frame_len(*p, *left);

    if (!n || moat_ses_decode(*p + 4, n - 4, rec) != n - 4)
        return false;
    *p += n;
    *left -= n;
    return true;
}

int moat_ctl_import(struct moat_ctl *c, const char *vnic, bool same_policy, const uint8_t *frames,
                    size_t len, struct moat_ctl_import_reply *sum)
{
    enum { ROOM = MOAT_CTL_MAX - sizeof(struct moat_ctl_head) };
    struct moat_ctl_import im = {.same_policy = same_policy};
    uint8_t *buf;
    int rc;

    memset(sum, 0, sizeof *sum);
    rc = put_name(c, im.vnic, vnic);
    if (rc)
        return rc;
    buf = malloc(ROOM);
    if (!buf)
        return fail(c, -ENOMEM, "out of memory");
    while (len && !rc) {
        struct moat_ctl_import_reply one;
        size_t off = 0, n;

        im.n = 0;
        while ((n = moat_ctl_frame_len(frames + off, len - off)) &&
               sizeof im + off + n <= ROOM) {
            off += n;
            im.n++;
        }
        if (!off) {
            rc = fail(c, -EBADMSG, "a malformed session record");
            break;
        }
        memcpy(buf, &im, sizeof im);
        memcpy(buf + sizeof im, frames, off);
        rc = call_fixed(c, MOAT_CTL_IMPORT, buf, sizeof im + off, &one, sizeof one);
        if (!rc) {
            sum->accepted += one.accepted;
            sum->refused += one.refused;
            frames += off;
            len -= off;
        }
    }
    free(buf);
    return rc;
}

/* --- events and traced packets ----------------------------------------------- */

int moat_ctl_subscribe(struct moat_ctl *c)
{
    int rc = moat_ctl_call(c, MOAT_CTL_SUBSCRIBE, NULL, 0, -1, NULL);

    if (!rc)
        c->stream = true;
    return rc;
}

/* The next message of a stream: 1, 0 if there is none now, or an error. */
static int next_message(struct moat_ctl *c, enum moat_ctl_type type, size_t least,
                        struct moat_ctl_reply *r)
{
    struct moat_ctl_head head;

    r->fd = -1;
    if (moat_ctl_is_dead(c))
        return -ENOTCONN;
    int rc = recv_message(c, &head, r);
    if (rc <= 0)
        return rc;
    if (r->fd >= 0)
        close(r->fd);
    if ((head.type & ~MOAT_CTL_REPLY) != type || r->len < least)
        return DIE(c, -EPROTO, "message %#x of %zu bytes where one of type %#x was due", head.type,
                   r->len, type);
    return 1;
}

int moat_ctl_next_event(struct moat_ctl *c, struct moat_event *ev)
{
    struct moat_ctl_reply r;
    int rc = next_message(c, MOAT_CTL_EVENT, sizeof *ev, &r);

    if (rc <= 0)
        return rc;
    if (r.len != sizeof *ev)
        return DIE(c, -EPROTO, "an event of %zu bytes, expected %zu", r.len, sizeof *ev);
    memcpy(ev, r.body, sizeof *ev);
    END(ev->vnic);
    END(ev->path);
    END(ev->text);
    return 1;
}

int moat_ctl_trace(struct moat_ctl *c, const struct moat_ctl_trace *ask,
                   const struct moat_trace_insn *insns)
{
    struct {
        struct moat_ctl_trace ask;
        struct moat_trace_insn insns[MOAT_TRACE_INSNS_MAX];
    } m = {.ask = *ask};

    if (ask->n_insns > MOAT_TRACE_INSNS_MAX)
        return fail(c, -E2BIG, "a filter of %u instructions, at most %u", ask->n_insns,
                    MOAT_TRACE_INSNS_MAX);
    if (ask->n_insns)
        memcpy(m.insns, insns, ask->n_insns * sizeof *insns);
    int rc = moat_ctl_call(c, MOAT_CTL_TRACE, &m, sizeof m.ask + ask->n_insns * sizeof *insns, -1,
                           NULL);
    if (!rc)
        c->stream = true;
    return rc;
}

int moat_ctl_next_traced(struct moat_ctl *c, struct moat_traced *t, const uint8_t **data)
{
    struct moat_ctl_reply r;
    int rc = next_message(c, MOAT_CTL_TRACED, sizeof *t, &r);

    if (rc <= 0)
        return rc;
    memcpy(t, r.body, sizeof *t);
    if (t->cap_len != r.len - sizeof *t)
        return DIE(c, -EPROTO, "a packet of %u bytes in %zu", t->cap_len, r.len - sizeof *t);
    END(t->vnic);
    *data = (const uint8_t *)r.body + sizeof *t;
    return 1;
}
