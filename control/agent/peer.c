/* SPDX-License-Identifier: Apache-2.0 */

/* Life of a connection: CONNECTING (TCP, then TLS), OPEN, DRAINING (nobody owns it
 * any more, what waits is still sent), freed.  Only peer_run() frees, never a call
 * from within a callback, so that a callback may close any connection. */

#include <config.h>

#include "peer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "openvswitch/list.h"
#include "openvswitch/ofpbuf.h"
#include "openvswitch/poll-loop.h"
#include "openvswitch/vlog.h"
#include "stream-ssl.h"
#include "stream.h"
#include "timeval.h"
#include "util.h"
#include "wire.h"

VLOG_DEFINE_THIS_MODULE(peer);

static struct vlog_rate_limit rl = VLOG_RATE_LIMIT_INIT(10, 30);

#define MAX_PEERS 256
#define HANDSHAKE_MS 5000
#define FIRST_FRAME_MS 5000 /* an incoming connection says what it wants */
#define DRAIN_MS 5000
#define MAX_BACKLOG (8u << 20)
#define FRAMES_A_TURN 64

enum state { CONNECTING, OPEN, DRAINING };

struct peer {
    struct ovs_list node;
    struct stream *stream;
    enum state state;
    bool incoming, heard;
    bool dead;
    char *host; /* whom we expect, then who it is */
    void *owner;
    long long since, last_heard;
    struct ofpbuf rx;
    struct ovs_list tx; /* of struct ofpbuf */
    size_t backlog;
};

static struct ovs_list peers = OVS_LIST_INITIALIZER(&peers);
static unsigned n_peers;
static unsigned long long n_refused;
static struct pstream *listener;
static char *listen_name;
static long long listen_at;
static const struct peer_ops *ops;

static void try_listen(void)
{
    if (!listen_name || listener || time_msec() < listen_at)
        return;
    int error = pstream_open(listen_name, &listener, 0);
    if (error) {
        VLOG_WARN_RL(&rl, "%s: cannot listen: %s", listen_name, ovs_strerror(error));
        listener = NULL;
        listen_at = time_msec() + 1000;
    } else {
        VLOG_INFO("%s: listening for other agents", listen_name);
    }
}

int peer_init(const char *listen, const struct peer_ops *ops_)
{
    ops = ops_;
    if (!listen)
        return 0;
    if (strncmp(listen, "pssl:", 5) || pstream_verify_name(listen))
        return EINVAL;
    listen_name = xstrdup(listen);
    try_listen();
    return 0;
}

static struct peer *peer_create(struct stream *stream, const char *host, void *owner, bool incoming)
{
    struct peer *p = xzalloc(sizeof *p);

    p->stream = stream;
    p->host = nullable_xstrdup(host);
    p->owner = owner;
    p->incoming = incoming;
    p->since = p->last_heard = time_msec();
    ofpbuf_init(&p->rx, 0);
    ovs_list_init(&p->tx);
    ovs_list_push_back(&peers, &p->node);
    n_peers++;
    return p;
}

static void peer_free(struct peer *p)
{
    ovs_list_remove(&p->node);
    stream_close(p->stream);
    ofpbuf_uninit(&p->rx);
    ofpbuf_list_delete(&p->tx);
    free(p->host);
    free(p);
    n_peers--;
}

struct peer *peer_open(const char *address, const char *host, void *owner)
{
    struct stream *stream;

    if (strncmp(address, "ssl:", 4) || n_peers >= MAX_PEERS)
        return NULL;
    int error = stream_open(address, &stream, 0);
    if (error && error != EAGAIN) {
        VLOG_INFO_RL(&rl, "%s: %s", address, ovs_strerror(error));
        return NULL;
    }
    return peer_create(stream, host, owner, false);
}

/* The connection is of no more use: whoever owns it hears so. */
static void fail(struct peer *p, const char *why)
{
    if (p->dead)
        return;
    p->dead = true;
    if (p->state == DRAINING)
        return;
    VLOG_INFO_RL(&rl, "%s (%s): %s", stream_get_name(p->stream), p->host ? p->host : "?", why);
    if (p->state == OPEN || !p->incoming)
        ops->closed(p, why);
}

/* Said once for each who and why, so `who` must not have what differs each time. */
static void refuse(struct peer *p, const char *who, const char *why)
{
    n_refused++;
    VLOG_DBG("%s: refused: %s: %s", stream_get_name(p->stream), who, why);
    ops->refused(who, why);
    fail(p, why);
}

/* "ssl:10.0.0.1:53214" without the port. */
static const char *address_of(const struct peer *p)
{
    static char buf[128];
    const char *name = stream_get_name(p->stream);
    const char *port = strrchr(name, ':');

    ovs_strzcpy(buf, name, MIN(sizeof buf, (size_t)(port - name) + 1));
    return buf;
}

static void finish_connecting(struct peer *p)
{
    int error = stream_connect(p->stream);

    if (error == EAGAIN) {
        if (time_msec() - p->since > HANDSHAKE_MS)
            fail(p, "no connection in time");
        return;
    }
    if (error) {
        if (p->incoming)
            refuse(p, address_of(p),
                   error == EPROTO ? "no certificate that the cluster's authority signed"
                                   : ovs_strerror(error));
        else
            fail(p, ovs_strerror(error));
        return;
    }
    const char *id = stream_get_peer_id(p->stream);
    if (!id || !*id) {
        refuse(p, address_of(p), "a certificate without a name");
    } else if (strlen(id) >= MOAT_ID_MAX || !ops->is_host(id)) {
        refuse(p, id, "the certificate's name is no host of this cluster");
    } else if (p->host && strcmp(p->host, id)) {
        refuse(p, id, "another host answered than was called");
    } else {
        free(p->host);
        p->host = xstrdup(id);
        p->state = OPEN;
        p->since = p->last_heard = time_msec();
        ops->connected(p);
    }
}

static void send_some(struct peer *p)
{
    struct ofpbuf *b;

    LIST_FOR_EACH_SAFE (b, list_node, &p->tx) {
        int n = stream_send(p->stream, b->data, b->size);
        if (n == -EAGAIN)
            return;
        if (n < 0) {
            fail(p, ovs_strerror(-n));
            return;
        }
        p->backlog -= (size_t)n;
        ofpbuf_pull(b, (size_t)n);
        if (b->size)
            return;
        ovs_list_remove(&b->list_node);
        ofpbuf_delete(b);
    }
}

/* True if a frame was taken from what has been received. */
static bool take_frame(struct peer *p)
{
    const char *why = "";
    struct wire w;
    long len = wire_frame_len(p->rx.data, p->rx.size, &why);

    if (len < 0) {
        fail(p, why);
        return false;
    }
    if (!len || p->rx.size < (size_t)len)
        return false;
    if (wire_decode(p->rx.data, (size_t)len, &w, &why)) {
        fail(p, why);
        return false;
    }
    p->heard = true;
    VLOG_DBG("%s: %s from %s", stream_get_name(p->stream), wire_type_name(w.type), p->host);
    ops->frame(p, &w);
    ofpbuf_pull(&p->rx, (size_t)len);
    return p->state == OPEN && !p->dead;
}

static void receive_some(struct peer *p)
{
    int frames = 0;

    while (take_frame(p))
        if (++frames >= FRAMES_A_TURN) {
            poll_immediate_wake();
            return;
        }
    if (p->state != OPEN || p->dead)
        return;
    /* wire_frame_len() has accepted the head, so this is bounded. */
    for (int i = 0; i < 16; i++) {
        ofpbuf_prealloc_tailroom(&p->rx, 64 << 10);
        int n = stream_recv(p->stream, ofpbuf_tail(&p->rx), ofpbuf_tailroom(&p->rx));
        if (n == -EAGAIN)
            return;
        if (n <= 0) {
            fail(p, n ? ovs_strerror(-n) : "closed by the other side");
            return;
        }
        p->rx.size += (size_t)n;
        p->last_heard = time_msec();
        while (take_frame(p))
            if (++frames >= FRAMES_A_TURN) {
                poll_immediate_wake();
                return;
            }
        if (p->state != OPEN || p->dead)
            return;
    }
    poll_immediate_wake();
}

static void accept_some(void)
{
    struct stream *stream;

    for (int i = 0; listener && i < 8; i++) {
        int error = pstream_accept(listener, &stream);
        if (error == EAGAIN)
            return;
        if (error) {
            VLOG_WARN_RL(&rl, "%s: accept: %s", listen_name, ovs_strerror(error));
            return;
        }
        if (n_peers >= MAX_PEERS) {
            VLOG_WARN_RL(&rl, "%s: too many connections", stream_get_name(stream));
            n_refused++;
            stream_close(stream);
            continue;
        }
        peer_create(stream, NULL, NULL, true);
    }
}

void peer_run(void)
{
    struct peer *p;

    try_listen();
    accept_some();
    LIST_FOR_EACH_SAFE (p, node, &peers) {
        if (!p->dead)
            stream_run(p->stream);
        if (!p->dead && p->state == CONNECTING)
            finish_connecting(p);
        if (!p->dead && p->state == OPEN) {
            receive_some(p);
            if (!p->dead && p->incoming && !p->heard && time_msec() - p->since > FIRST_FRAME_MS)
                refuse(p, p->host, "it does not say what it wants");
        }
        if (!p->dead && p->state != CONNECTING)
            send_some(p);
        if (p->state == DRAINING && (!p->backlog || time_msec() - p->since > DRAIN_MS))
            p->dead = true;
        if (p->dead)
            peer_free(p);
    }
}

void peer_wait(void)
{
    struct peer *p;

    if (listener)
        pstream_wait(listener);
    else if (listen_name)
        poll_timer_wait_until(listen_at);
    LIST_FOR_EACH (p, node, &peers) {
        stream_run_wait(p->stream);
        if (p->dead) {
            poll_immediate_wake();
        } else if (p->state == CONNECTING) {
            stream_connect_wait(p->stream);
            poll_timer_wait_until(p->since + HANDSHAKE_MS + 1);
        } else {
            if (p->state == OPEN)
                stream_recv_wait(p->stream);
            if (p->backlog)
                stream_send_wait(p->stream);
            if (p->state == DRAINING)
                poll_timer_wait_until(p->backlog ? p->since + DRAIN_MS + 1 : 0);
            else if (p->incoming && !p->heard)
                poll_timer_wait_until(p->since + FIRST_FRAME_MS + 1);
        }
    }
}

void peer_exit(void)
{
    struct peer *p;

    LIST_FOR_EACH_SAFE (p, node, &peers)
        peer_free(p);
    pstream_close(listener);
    free(listen_name);
}

bool peer_send(struct peer *p, const struct wire *w)
{
    size_t room = MOAT_WIRE_HEAD + 2048 + w->blob_len;
    struct ofpbuf *b;

    if (p->dead || p->state == DRAINING)
        return false;
    b = ofpbuf_new(room);
    b->size = wire_encode(w, b->data, room);
    if (!b->size || p->backlog + b->size > MAX_BACKLOG) {
        ofpbuf_delete(b);
        VLOG_WARN_RL(&rl, "cannot send %s to %s", wire_type_name(w->type), p->host);
        p->dead = true; /* freed by peer_run(), which also tells */
        ops->closed(p, "cannot send");
        return false;
    }
    VLOG_DBG("%s: %s to %s", stream_get_name(p->stream), wire_type_name(w->type), p->host);
    p->backlog += b->size;
    ovs_list_push_back(&p->tx, &b->list_node);
    if (p->state == OPEN)
        send_some(p);
    return true;
}

size_t peer_backlog(const struct peer *p)
{
    return p->backlog;
}

void peer_close(struct peer *p)
{
    if (p->state == CONNECTING)
        p->dead = true;
    p->state = DRAINING;
    p->owner = NULL;
    p->since = time_msec();
}

const char *peer_host(const struct peer *p)
{
    return p->host;
}

bool peer_is_incoming(const struct peer *p)
{
    return p->incoming;
}

long long peer_last_heard(const struct peer *p)
{
    return p->last_heard;
}

void *peer_owner(const struct peer *p)
{
    return p->owner;
}

void peer_set_owner(struct peer *p, void *owner)
{
    p->owner = owner;
}

unsigned peer_count(void)
{
    return n_peers;
}

unsigned long long peer_n_refused(void)
{
    return n_refused;
}

const char *peer_listening(void)
{
    return listener ? listen_name : NULL;
}
