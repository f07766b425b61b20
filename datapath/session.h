/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_SESSION_H
#define MOAT_DP_SESSION_H 1

/* The session table: each vNIC's own view of its connections.
 *
 * A bucket is one cache line of 10 ways {tag, index}.  The first bucket of a session
 * comes from a salted, symmetric hash of the tuple without the slot, so the entries that
 * the two ends of a connection on one host have share that line; the slot is in the
 * tag.  The second bucket has the slot mixed in, so that one tuple seen by many vNICs
 * cannot overflow.
 *
 *   buckets   tag[10] | index[10]             64 bytes, 1 line for both slots
 *   sessions  key, state, small counters      64 bytes, all that a packet of a live one touches
 *   cold      rule, age, large counters       24 bytes, one packet in 256 touches them
 *   addrs6    both IPv6 addresses             32 bytes, of the last n_sessions6 entries alone
 *
 * All are arrays over one index: entry i of sessions has entry i of cold, and, from n_sessions -
 * n_sessions6 on, entry i - (n_sessions - n_sessions6) of addrs6.  IPv6 sessions live there;
 * IPv4 sessions do when the rest is full.
 *
 * Threads: any packet thread looks up, updates and inserts.  Inserts of one tuple are
 * serialised by a lock in its first bucket, a line that they write anyway; ways are claimed by
 * compare-and-swap.  Only the control thread removes, and an entry is used again only
 * when all packet threads have left the burst in which they might have found it.
 * An entry becomes valid by one store (`key.tag`). */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "moat/session.h"
#include "moat/settings.h"

#include "parse.h"

#define MOAT_BUCKET_WAYS 10
#define MOAT_NO_SESSION UINT32_MAX

struct moat_mapping;
struct moat_thread;
struct moat_session_table;

struct moat_bucket {
    uint16_t tag[MOAT_BUCKET_WAYS]; /* 0: free; 1: being written */
    uint32_t index[MOAT_BUCKET_WAYS];
    uint8_t lock; /* who inserts or removes a session whose first choice this is; free between
                     engines */
    uint8_t pad;
    uint16_t away; /* atomic: how many of those are in another bucket; under lock.  At most
                    * UINT16_MAX, and then for good */
} __attribute__((aligned(64)));

/* A session's key: its slot and tuple from the VM's side.  IPv4 addresses as they
 * are on the wire; IPv6 addresses folded (the full ones are compared after). */
struct moat_key {
    uint32_t tag; /* slot and incarnation (moat_view.tag); never 0 */
    uint32_t local, remote;
    uint16_t lport, rport; /* ICMP queries: identifier, and request type and direction */
    uint16_t vlan;
    uint8_t proto, family;
};

#define MOAT_SES_F_WAIT_FROM_VM 0x10 /* imported: no packet in this direction yet */
#define MOAT_SES_F_WAIT_TO_VM 0x20
#define MOAT_SES_F_CUT 0x40 /* ended by policy: packets that meet it meet nothing */
#define MOAT_SES_F_HALF_OPEN                                                                       \
    0x80 /* counts as half-open; who clears it uncounts it.  Of a record, the                      \
          * bit says something else: MOAT_SES_F_STALE */
#define MOAT_SES_F_INTERNAL 0xf0 /* bits that stay out of records */

#define MOAT_SES_MARK_ERROR 0x01  /* an ICMP error came back: a query ends sooner */
#define MOAT_SES_MARK_TO_VM 0x02  /* direction of the first packet; not set: from the VM */
#define MOAT_SES_MARK_GEN_SHIFT 4 /* bits 4-7: which upper half its generation has */

/* A slot's idle timers. */
struct moat_timers {
    uint32_t shortest; /* of the others */
    uint32_t seconds[MOAT_N_TIMERS];
};

/* What a packet of a live session reads and writes. */
struct moat_session {
    struct moat_key key; /* key.tag is stored last: it makes the entry live */
    uint32_t serial;     /* of the slot's ruleset that admitted it; 0: judge again */
    uint32_t seen;       /* engine clock of the last packet, seconds */
    uint8_t flags;       /* MOAT_SES_F_* */
    uint8_t marks;       /* MOAT_SES_MARK_* */
    uint8_t wraps[2];    /* by direction: packets, bits 24-31 */
    struct moat_ses_side side[2];
    uint32_t tally[2]; /* by direction: packets and bytes, the low bits of both (MOAT_TALLY_*) */
} __attribute__((aligned(64)));

/* The rest.  Threads: atomic words; of a live entry whoever holds its lock or cuts it writes
 * rule, created and generation, packet threads carry into the counters. */
struct moat_session_cold {
#ifdef MOAT_OTHER_LAYOUT /* for tests of what happens between two layouts */
    uint64_t other;
#endif
    uint32_t rule;       /* id of the rule that admitted it */
    uint32_t created;    /* engine clock, seconds.  Of a dead entry: nothing */
    uint32_t generation; /* of the policy that admitted it, low half */
    uint32_t bytes[2];   /* by direction, from bit 22 on */
    uint16_t packets[2]; /* by direction, bits 8-23 */
};

/* A tally: 8 bits of packets and their carry, 22 bits of bytes and theirs.
 *
 *    31   30 ... 9   8   7 ... 0
 *   carry  bytes   carry packets
 *
 * Packets wrap at 2^32, bytes at 2^54 (18 petabytes). */
#define MOAT_TALLY_PKT_BITS 8
#define MOAT_TALLY_BYTE_BITS 22
#define MOAT_TALLY_BYTES 9 /* where they begin */
#define MOAT_TALLY_PKT_CARRY (1u << MOAT_TALLY_PKT_BITS)
#define MOAT_TALLY_BYTE_CARRY (1u << (MOAT_TALLY_BYTES + MOAT_TALLY_BYTE_BITS))
#define MOAT_TALLY_CARRY (MOAT_TALLY_PKT_CARRY | MOAT_TALLY_BYTE_CARRY)

/* A session outside of the table: to be inserted, or read from it. */
struct moat_session_whole {
    struct moat_session s; /* tally, wraps and the generation's mark are the table's business */
    uint32_t rule, created;
    uint64_t generation;
    uint64_t packets[2], bytes[2];   /* by direction */
    uint8_t local6[16], remote6[16]; /* IPv6 */
};

_Static_assert(sizeof(struct moat_bucket) == 64, "one line");
_Static_assert(sizeof(struct moat_key) == 20, "compared as words");
_Static_assert(sizeof(struct moat_session) == 64, "one line");
#ifndef MOAT_OTHER_LAYOUT
_Static_assert(sizeof(struct moat_session_cold) == 24, "96 bytes a session, all told");
#endif
_Static_assert(MOAT_TALLY_BYTES == MOAT_TALLY_PKT_BITS + 1, "behind the carry");

/* Empty until one of moat_session_table_recover() and moat_session_table_resume(). */
struct moat_session_table *moat_session_table_create(struct moat_mapping *);
void moat_session_table_destroy(struct moat_session_table *);

/* Makes key and hash of a parsed packet that makes sessions (TCP, UDP, ICMP query, other
 * IP).  Pure but for the salt. */
uint64_t moat_session_key(const struct moat_session_table *, const struct moat_pkt *, enum moat_dir,
                          uint32_t tag, struct moat_key *);

/* Of a key of this table, what moat_session_key() returned with it. */
uint64_t moat_session_hash(const struct moat_session_table *, const struct moat_key *);

/* Looks up n <= 32 keys; pkts give the full IPv6 addresses.  out[i] is the index of the
 * session or MOAT_NO_SESSION.  Found sessions stay valid until the burst ends. */
void moat_session_lookup_bulk(const struct moat_session_table *, const struct moat_key *keys,
                              const uint64_t *hashes, const struct moat_pkt *const *pkts,
                              enum moat_dir, unsigned n, uint32_t *out);

/* Looks up those IPv4 keys whose bit is set, everywhere; bit i of the result: out[i] is a session,
 * else it is MOAT_NO_SESSION. */
uint32_t moat_session_elsewhere(const struct moat_session_table *, const struct moat_key *keys,
                                const uint64_t *hashes, uint32_t which, uint32_t *out);

static inline bool moat_session_is(const struct moat_session *s, const struct moat_key *k)
{
    uint64_t a[2], b[2];

    if (__atomic_load_n(&s->key.tag, __ATOMIC_ACQUIRE) != k->tag)
        return false;
    memcpy(a, &s->key.local, sizeof a);
    memcpy(b, &k->local, sizeof b);
    return !((a[0] ^ b[0]) | (a[1] ^ b[1]));
}

/* The keys whose bits are set were not found; they will be looked up one by one and perhaps
 * inserted: what that touches is prefetched. */
void moat_session_prepare(struct moat_session_table *, struct moat_thread *,
                          const struct moat_key *keys, const uint64_t *hashes, uint32_t which);

/* One key, as above; for packets that another one of the same burst may have opened. */
uint32_t moat_session_lookup(const struct moat_session_table *, const struct moat_key *,
                             uint64_t hash, const struct moat_pkt *, enum moat_dir);

struct moat_session *moat_session_at(const struct moat_session_table *, uint32_t index);

/* The cold part of a session of this table. */
struct moat_session_cold *moat_session_cold(const struct moat_session_table *,
                                            const struct moat_session *);

/* Both IPv6 addresses of a session of this table, local then remote: 32 bytes.  NULL: IPv4. */
const uint8_t *moat_session_addresses(const struct moat_session_table *,
                                      const struct moat_session *);

/* Of a session that packet threads may be writing: each field as it was at some time.  The counters
 * are exact if one thread at a time serves a direction; if several do (queues), packets may
 * be lost, or counted twice when a carry meets another thread's. */
void moat_session_read(const struct moat_session_table *, const struct moat_session *,
                       struct moat_session_whole *out);
void moat_session_counts(const struct moat_session_table *, const struct moat_session *,
                         enum moat_dir, uint64_t *packets, uint64_t *bytes);
uint64_t moat_session_generation(const struct moat_session_table *, const struct moat_session *);

static inline enum moat_dir moat_session_dir(const struct moat_session *s)
{
    return __atomic_load_n(&s->marks, __ATOMIC_RELAXED) & MOAT_SES_MARK_TO_VM ? MOAT_TO_VM
                                                                              : MOAT_FROM_VM;
}

/* A live session was admitted by this rule of this generation. */
void moat_session_admitted(struct moat_session_table *, struct moat_session *, uint32_t rule,
                           uint64_t generation, uint32_t serial);

/* A tally whose carries are set; extra: bytes in units of the carry. */
void moat_session_carry(const struct moat_session_table *, struct moat_session *, enum moat_dir,
                        uint32_t tally, uint32_t extra);

/* Inserts *s (key, state, addresses all set), or finds that another thread was faster:
 * then *found is true and the index is the other's.  The caller has looked up in vain.
 * MOAT_NO_SESSION with *reason set if there is no room. */
uint32_t moat_session_insert(struct moat_session_table *, struct moat_thread *, uint64_t hash,
                             const struct moat_session_whole *s, bool *found,
                             enum moat_reason *reason);

/* Another session in place of a live one of the same key, with the lock held or where nobody else
 * writes; returns the flags before. */
uint8_t moat_session_renew(struct moat_session_table *, struct moat_session *,
                           const struct moat_session_whole *);

/* Serialises inserts, restarts and removals of sessions with this hash.  Short. */
void moat_session_lock(struct moat_session_table *, uint64_t hash);
void moat_session_unlock(struct moat_session_table *, uint64_t hash);

/* Control thread only: unlinks the session if over() still says so under its lock; it
 * stays readable until the token of the next moat_session_reclaim() has passed. */
bool moat_session_remove_if(struct moat_session_table *, uint32_t index,
                            bool (*over)(void *aux, const struct moat_session *), void *aux);

/* This live session will perhaps be removed soon: what that writes is fetched. */
void moat_session_will_remove(const struct moat_session_table *, uint32_t index);

/* Control thread only: gives removed entries back whose readers have left. */
struct moat_qsbr;
void moat_session_reclaim(struct moat_session_table *, struct moat_qsbr *);

/* Which of its timers runs. */
enum moat_timer moat_session_timer(const struct moat_session *);

static inline bool moat_session_expired(const struct moat_session *s, uint32_t now_s,
                                        const struct moat_timers *t)
{
    uint32_t idle_s = now_s - __atomic_load_n(&s->seen, __ATOMIC_RELAXED);

    /* The busy ones are not asked for their state.  Another thread's clock may be ahead. */
    return __builtin_expect(idle_s > t->shortest, 0) && (int32_t)idle_s > 0 &&
           idle_s > t->seconds[moat_session_timer(s)];
}

/* At start: rebuilds buckets and free list from the entries.  keep() says whether an
 * entry's slot still knows it.  Returns how many live ones there are. */
uint32_t moat_session_table_recover(struct moat_session_table *,
                                    bool (*keep)(void *aux, const struct moat_session *),
                                    void *aux);

/* The hand-over to another table over the same mapping, without a rebuild.  leave(): nobody else
 * uses the table any more, all threads' entries were given back (moat_session_thread_flush()),
 * and this one will only be destroyed.  resume() in place of recover(): takes over what leave()
 * left, in this process; false if nothing was.  Never to be called for a mapping that another
 * process left: what is in it is believed. */
void moat_session_table_leave(struct moat_session_table *);
bool moat_session_table_resume(struct moat_session_table *);

/* From now on what changes is noted there (session_watch.h); NULL: no longer.  Who was in a burst
 * before may not know yet. */
struct moat_session_watch;
void moat_session_table_watch(struct moat_session_table *, struct moat_session_watch *);

uint32_t moat_session_table_size(const struct moat_session_table *);
uint32_t moat_session_table_used(const struct moat_session_table *);

/* What one session of this family costs, all told: its entry, its share of the index and of
 * what the table needs besides. */
double moat_session_table_bytes(const struct moat_session_table *, enum moat_family);

/* Gives the thread's cached free entries back; when a thread ends. */
void moat_session_thread_flush(struct moat_session_table *, struct moat_thread *);

#endif /* datapath/session.h */
