/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_CTL_PRIVATE_H
#define MOAT_DP_CTL_PRIVATE_H 1

/* The control socket inside: ctl.c moves messages and clients, ctl_request.c says what each
 * request does, ctl_trace.c sends traced packets.  Nobody else. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/un.h>

#include "moat/ctl.h"

#include "ctl.h"

#define CTL_BODY_MAX (MOAT_CTL_MAX - sizeof(struct moat_ctl_head))
#define CTL_N_TYPES (MOAT_CTL_REPLACE + 1)
#define CTL_N_ERRNOS 160
#define CTL_MAX_FDS 8 /* that we take along in order to close them */

struct moat_trace;

struct ctl_client {
    int fd; /* -1: unused */
    bool greeted, subscribed;
    bool waits; /* for the exchange of the engine, which this asked for: */
    uint32_t xid;
    uint16_t version;
    struct moat_trace *trace;     /* ends with the client */
    struct moat_ctl_head *answer; /* not taken yet; with its body */
    int answer_fd;
};

struct moat_ctl_server {
    struct moat_engine *engine;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    uid_t uid;
    void (*log)(const char *);
    int listen_fd;
    const struct moat_ctl_exchange *exchange;
    bool exchanging, replaced;
    unsigned n_traces;           /* clients that have one */
    uint64_t turn_at, accept_at; /* milliseconds */
    uint64_t keep_until;         /* milliseconds: events wait for somebody who subscribes */
    uint64_t refused;
    uint64_t refused_second;
    unsigned refused_this_second;
    bool logged[CTL_N_TYPES][CTL_N_ERRNOS];
    struct ctl_client clients[MOAT_CTL_MAX_CLIENTS];
    _Alignas(16) uint8_t in[MOAT_CTL_MAX], out[MOAT_CTL_MAX];
};

/* A request on its way to its answer. */
struct ctl_request {
    struct moat_ctl_head head;
    const void *body;
    size_t len;
    int fds[CTL_MAX_FDS];
    unsigned n_fds;
    bool truncated;
    struct ctl_client *client;
    /* the answer */
    void *reply; /* CTL_BODY_MAX bytes */
    size_t reply_len;
    int reply_fd; /* -1: none; closed when it has been sent */
    bool later;   /* there is no answer yet */
    char why[256];
};

/* --- ctl_request.c --- */

/* 0 with the answer in the request, or negative errno with its `why`. */
typedef int ctl_handler_fn(struct moat_ctl_server *, struct ctl_request *);

struct ctl_handler {
    const char *name;
    ctl_handler_fn *fn;
    size_t len;  /* of the body */
    bool longer; /* it may be longer */
    unsigned n_fds;
};
extern const struct ctl_handler ctl_handlers[CTL_N_TYPES];

/* Sets `why` and returns rc. */
int ctl_refuse(struct ctl_request *, int rc, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* A text must end within its field and be fit to be shown. */
int ctl_check_text(struct ctl_request *, const char *name, const char *s, size_t size);

/* --- ctl_trace.c --- */

ctl_handler_fn ctl_on_trace;

/* Sends a client what its trace has, as much as it takes.  False: the client has gone. */
bool ctl_trace_send(struct ctl_client *);

/* Ends the client's trace, if it has one. */
void ctl_trace_end(struct moat_ctl_server *, struct ctl_client *);

/* --- ctl.c --- */

/* Sends a message, or keeps it until the client takes it: client->answer is then set.  fd (-1:
 * none) is ours from here on.  Negative errno: the client has gone; it must be dropped. */
int ctl_send(struct ctl_client *, const struct moat_ctl_head *, int fd);

#endif /* datapath/ctl_private.h */
