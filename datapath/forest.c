/* SPDX-License-Identifier: Apache-2.0 */

/* Planting: deal a list's rules into trees, then cut each tree's rules along the dimension
 * that leaves the fewest per branch, until few are left or nothing helps.  Branches of one cut
 * that hold the same are made once.  A rule that decides all that a branch may hold ends it. */

#include "forest.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define LEAF_RULES 16 /* no cut below this */
#define MAX_DEPTH 12
#define MAX_COPIES 6      /* branches may hold so many times the rules of a cut */
#define MAX_RUNS 512      /* ranges of classes that a set is told by */
#define WORK_PER_RULE 600 /* boxes looked at: the bound on time */
#define LARGE_LEAF 48     /* a list with such a leaf is better off with more trees */
#define SPARE_WORK 200000
#define SPARE 16 /* the reader takes boxes by eights, and asks for four lines */
#define HUGE_PAGE (2u << 20)

/* Two bytes each, both included. */
struct run {
    uint16_t lo, hi;
};

struct set_runs {
    uint32_t at, n;
    bool coarse; /* one run from its first to its last class, for want of room */
    bool narrow; /* few classes */
};

struct forest_maker {
    const struct moat_ruleset_body *body;
    const struct moat_rule *rules;
    const uint16_t *rank;
    struct run *runs;
    struct set_runs *sets;
    uint8_t *ends; /* by rule: nothing behind it is met by a packet that it matches */
    uint64_t work, work_max;
    size_t memory_max;
    struct forest *forest;
    uint32_t leaf_max; /* a larger one is a failure */
    uint32_t deepest;  /* leaf of the list */
    bool exact, failed;
    uint32_t *counts; /* scratch of 65537 */
};

/* A rule as a node sees it: what of it lies within the node. */
struct ref {
    uint32_t rule;
    uint16_t multi; /* bit d: several runs in dimension d */
    uint16_t verify;
    uint16_t lo[N_DIMS], hi[N_DIMS];
};

struct box {
    uint16_t lo[N_DIMS], hi[N_DIMS];
};

struct cut {
    unsigned dim, shift;
    uint32_t base, last;
};

/* --- What lists share ---------------------------------------------------------------- */

static void runs_of(struct forest_maker *m, uint32_t set, const uint64_t *bits, uint32_t *used,
                    uint32_t room)
{
    struct set_runs *s = &m->sets[set];
    uint32_t words = m->body->set_words, classes = 0, start = *used, most = start + MAX_RUNS;
    int64_t open = -1, first = -1, end = -1;

    s->at = start;
    if (most > room)
        most = room;
    for (uint32_t w = 0; w < words; w++) {
        uint64_t x = bits[w];
        uint32_t at = w * 64;

        if (open >= 0 && x == UINT64_MAX) {
            classes += 64;
            end = at + 63;
            continue;
        }
        if (open < 0 && !x)
            continue;
        classes += (uint32_t)__builtin_popcountll(x);
        for (uint32_t b = 0; b < 64;) {
            uint64_t rest = open < 0 ? x >> b : ~x >> b;

            if (open >= 0) { /* look for the next class that is out */
                uint32_t n = rest ? (uint32_t)__builtin_ctzll(rest) : 64 - b;

                if (n > 64 - b)
                    n = 64 - b;
                b += n;
                end = at + b - 1;
                if (b < 64) {
                    if (*used < most)
                        m->runs[*used] = (struct run){(uint16_t)open, (uint16_t)(at + b - 1)};
                    ++*used;
                    open = -1;
                }
            } else {
                if (!rest)
                    break;
                b += (uint32_t)__builtin_ctzll(rest);
                open = at + b;
                if (first < 0)
                    first = open;
            }
        }
    }
    if (open >= 0) {
        if (*used < most)
            m->runs[*used] = (struct run){(uint16_t)open, (uint16_t)end};
        ++*used;
    }
    if (*used > most) {
        *used = start;
        if (start < room)
            m->runs[(*used)++] = (struct run){(uint16_t)first, (uint16_t)end};
        else
            m->failed = true;
        s->coarse = true;
    }
    s->n = *used - start;
    s->narrow = classes <= m->body->n_classes / 8;
}

/* Rule c ends a branch unless a rule before it may send packets to one behind it. */
static void find_ends(struct forest_maker *m)
{
    uint32_t reach = 0;

    for (uint32_t i = 0; i < m->body->n_rules; i++) {
        const struct moat_rule *r = &m->rules[i];

        m->ends[i] = reach <= i && r->action != MOAT_NEXT_TIER && r->action != MOAT_LOG;
        if (r->action == MOAT_NEXT_TIER && r->skip_to > reach)
            reach = r->skip_to;
    }
}

struct forest_maker *forest_maker_create(const struct moat_ruleset_head *h, const uint16_t *rank)
{
    struct forest_maker *m = calloc(1, sizeof *m);
    const struct moat_ruleset_body *b = moat_ruleset_body(h);
    const uint64_t *bits = moat_ruleset_at(h, b->sets_off);
    uint32_t used = 0, room = h->size / 4 + b->n_sets;

    if (!m)
        return NULL;
    m->body = b;
    m->rules = moat_ruleset_at(h, b->rules_off);
    m->rank = rank;
    m->memory_max = 8 * (size_t)h->size + 65536;
    m->work_max = SPARE_WORK + (uint64_t)b->n_rules * WORK_PER_RULE;
    m->runs = malloc((room + 1) * sizeof *m->runs);
    m->sets = calloc(b->n_sets + 1, sizeof *m->sets);
    m->ends = malloc(b->n_rules + 1);
    m->counts = malloc(65538 * sizeof *m->counts);
    if (!m->runs || !m->sets || !m->ends || !m->counts) {
        forest_maker_destroy(m);
        return NULL;
    }
    /* One run of each set has a place for sure. */
    for (uint32_t i = 0; i < b->n_sets; i++)
        runs_of(m, i, bits + (size_t)i * b->set_words, &used, room - (b->n_sets - 1 - i));
    find_ends(m);
    return m;
}

void forest_maker_destroy(struct forest_maker *m)
{
    if (!m)
        return;
    free(m->runs);
    free(m->sets);
    free(m->ends);
    free(m->counts);
    free(m);
}

/* --- Room ---------------------------------------------------------------------------------- */

/* Large arrays lie on huge pages if there are any: a walk is random accesses. */
static void *enlarge(void *old, size_t old_size, size_t new_size)
{
    size_t to = new_size >= HUGE_PAGE ? HUGE_PAGE : 64;
    void *p = aligned_alloc(to, (new_size + to - 1) / to * to);

    if (!p)
        return NULL;
    if (to == HUGE_PAGE)
        madvise(p, new_size / to * to, MADV_HUGEPAGE);
    if (old)
        memcpy(p, old, old_size);
    free(old);
    return p;
}

static bool grow(void **p, uint32_t n, uint32_t more, uint32_t *cap)
{
    uint32_t want = *cap ? *cap : 256;
    void *q;

    more += SPARE;
    while (want - n < more)
        want *= 2;
    if (want == *cap)
        return true;
    q = enlarge(*p, (size_t)n * 16, (size_t)want * 16);
    if (!q)
        return false;
    *p = q;
    *cap = want;
    return true;
}

size_t forest_size(const struct forest *f)
{
    return (size_t)f->cap_slots * sizeof *f->slots + (size_t)f->cap_leaves * sizeof *f->leaves;
}

static bool over(struct forest_maker *m, uint64_t work, uint64_t more_slots, uint64_t more_leaves)
{
    const struct forest *f = m->forest;

    m->work += work;
    m->failed |= m->work > m->work_max ||
                 (f->n_slots + more_slots + f->n_leaves + more_leaves) * 16 > m->memory_max;
    return m->failed;
}

static uint32_t add_slots(struct forest_maker *m, uint32_t n)
{
    struct forest *f = m->forest;
    uint32_t at = f->n_slots;

    if (over(m, n, n, 0))
        return 0;
    if (!grow((void **)&f->slots, f->n_slots, n, &f->cap_slots)) {
        m->failed = true;
        return 0;
    }
    f->n_slots += n;
    return at;
}

static void shrink(void **p, uint32_t n, uint32_t *cap)
{
    void *q = n + SPARE < *cap ? enlarge(NULL, 0, (size_t)(n + SPARE) * 16) : NULL;

    if (!q)
        return;
    memcpy(q, *p, (size_t)n * 16);
    free(*p);
    *p = q;
    *cap = n + SPARE;
}

void forest_trim(struct forest *f)
{
    if (f->slots)
        shrink((void **)&f->slots, f->n_slots, &f->cap_slots);
    if (f->leaves)
        shrink((void **)&f->leaves, f->n_leaves, &f->cap_leaves);
}

void forest_clear(struct forest *f)
{
    free(f->slots);
    free(f->leaves);
    memset(f, 0, sizeof *f);
}

/* --- Leaves ----------------------------------------------------------------------------------- */

static struct forest_slot make_leaf(struct forest_maker *m, const struct ref *refs, uint32_t n)
{
    uint32_t blocks = n + (n + 3) / 4, *ids;
    struct forest *f = m->forest;
    struct forest_box *boxes;
    struct forest_slot out = {.shift = FOREST_LEAF_SHIFT, .first = n ? refs[0].rule : UINT32_MAX};

    if (n > m->leaf_max || over(m, n, 0, blocks) ||
        !grow((void **)&f->leaves, f->n_leaves, blocks, &f->cap_leaves)) {
        m->failed = true;
        return out;
    }
    boxes = &f->leaves[f->n_leaves];
    out.base = (uint16_t)f->n_leaves;
    out.last = (uint16_t)(f->n_leaves >> 16);
    out.n = (uint16_t)n;
    ids = (uint32_t *)(boxes + n);
    memset(boxes, 0xff, blocks * sizeof *boxes);
    for (uint32_t i = 0; i < n; i++) {
        struct forest_box *b = &boxes[i];

        for (unsigned d = 0; d < N_DIMS; d++) {
            b->lo[d] = refs[i].lo[d];
            b->not_hi[d] = (uint16_t)~refs[i].hi[d];
        }
        ids[i] = refs[i].rule | (refs[i].multi || refs[i].verify ? FOREST_VERIFY : 0);
    }
    f->n_leaves += blocks;
    return out;
}

/* --- Cuts ---------------------------------------------------------------------------------------
 */

static inline bool cares(const struct ref *r, unsigned d)
{
    return r->lo[d] || r->hi[d] != UINT16_MAX;
}

static const struct set_runs *runs_in(const struct forest_maker *m, const struct ref *r, unsigned d)
{
    const struct moat_rule *rule = &m->rules[r->rule];

    return &m->sets[d == DIM_PEER ? rule->peer_set : rule->local_set];
}

/* First run that ends at or behind v. */
static uint32_t seek_run(const struct forest_maker *m, const struct set_runs *s, uint32_t v)
{
    uint32_t lo = 0, hi = s->n;

    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;

        if (m->runs[s->at + mid].hi < v)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static inline uint32_t branch_of(const struct cut *c, uint32_t v)
{
    uint32_t i = v > c->base ? (v - c->base) >> c->shift : 0;

    return i < c->last ? i : c->last;
}

/* The branches that a ref of several runs reaches into, as ranges. */
struct spread {
    const struct ref *ref;
    const struct cut *cut;
    const struct set_runs *set; /* NULL: one range, nothing to walk */
    uint32_t run, next;         /* next: branches below have been told */
};

static struct spread spread_of(const struct forest_maker *m, const struct ref *r,
                               const struct cut *c)
{
    struct spread s = {.ref = r, .cut = c};

    if (r->multi >> c->dim & 1) {
        s.set = runs_in(m, r, c->dim);
        s.run = seek_run(m, s.set, r->lo[c->dim]);
    }
    return s;
}

static bool next_branches(struct forest_maker *m, struct spread *s, uint32_t *from, uint32_t *to)
{
    uint32_t lo = s->ref->lo[s->cut->dim], hi = s->ref->hi[s->cut->dim];

    for (; s->run < s->set->n; s->run++) {
        const struct run *run = &m->runs[s->set->at + s->run];

        if (run->lo > hi)
            return false;
        m->work++;
        *from = branch_of(s->cut, run->lo > lo ? run->lo : lo);
        *to = branch_of(s->cut, run->hi < hi ? run->hi : hi);
        if (*from < s->next)
            *from = s->next;
        if (*from > *to)
            continue;
        s->next = *to + 1;
        s->run++;
        return true;
    }
    return false;
}

static void count_runs(struct forest_maker *m, const struct ref *r, const struct cut *c)
{
    struct spread spread = spread_of(m, r, c);
    uint32_t from, to;

    while (next_branches(m, &spread, &from, &to)) {
        m->counts[from]++;
        m->counts[to + 1]--;
    }
}

/* How many rules each branch would hold; the sum. */
static uint64_t count(struct forest_maker *m, const struct ref *refs, uint32_t n,
                      const struct cut *c)
{
    uint32_t *steps = m->counts;
    uint32_t everywhere = 0;
    uint64_t sum = 0, here = 0;

    memset(steps, 0, (c->last + 2) * sizeof *steps);
    for (uint32_t i = 0; i < n; i++) {
        const struct ref *r = &refs[i];

        if (!cares(r, c->dim)) {
            everywhere++;
        } else if (!(r->multi >> c->dim & 1)) {
            steps[branch_of(c, r->lo[c->dim])]++;
            steps[branch_of(c, r->hi[c->dim]) + 1]--;
        } else {
            count_runs(m, r, c);
        }
    }
    steps[0] += everywhere;
    for (uint32_t b = 0; b <= c->last; b++) {
        here += (int32_t)steps[b];
        steps[b] = (uint32_t)here;
        sum += here;
    }
    m->work += (n + c->last) / 4;
    return sum;
}

/* Rules that a packet meets in its branch, if each rule gets as many packets. */
static double weigh(const struct forest_maker *m, uint64_t sum, const struct cut *c)
{
    double squares = 0;

    for (uint32_t b = 0; b <= c->last; b++)
        squares += (double)m->counts[b] * m->counts[b];
    return sum ? squares / (double)sum : 0;
}

/* The best of a few widths in dimension d. */
static void try_dim(struct forest_maker *m, const struct ref *refs, uint32_t n,
                    const struct box *box, unsigned d, struct cut *best, double *best_cost)
{
    uint32_t lo = UINT16_MAX, hi = 0, caring = 0, most;
    struct cut c = {.dim = d};

    for (uint32_t i = 0; i < n; i++) {
        if (!cares(&refs[i], d))
            continue;
        caring++;
        if (refs[i].lo[d] < lo)
            lo = refs[i].lo[d];
        if (refs[i].hi[d] > hi)
            hi = refs[i].hi[d];
    }
    if (caring < n / 4 + 1)
        return;
    /* Room for a branch below, and one above, what any rule asks for. */
    c.base = lo > box->lo[d] ? lo - 1 : box->lo[d];
    hi = hi < box->hi[d] ? hi + 1 : box->hi[d];
    most = n < 32768 ? 2 * n : 65536;
    while ((hi - c.base) >> c.shift >= most)
        c.shift++;
    for (unsigned fit = 0; fit < 2 && (hi - c.base) >> c.shift; c.shift += 2) {
        uint64_t sum;
        double cost;

        c.last = (hi - c.base) >> c.shift;
        sum = count(m, refs, n, &c);
        if (sum > (uint64_t)n * MAX_COPIES + 64)
            continue;
        fit++;
        cost = weigh(m, sum, &c) * (1 + 0.1 * ((double)sum / n - 1)) + 0.02 * c.last / n;
        if (cost < *best_cost) {
            *best_cost = cost;
            *best = c;
        }
    }
}

/* What of r lies in branch [lo, hi] of a cut; false: nothing. */
static bool clip(const struct forest_maker *m, struct ref *r, unsigned d, uint32_t lo, uint32_t hi)
{
    if (r->multi >> d & 1) {
        const struct set_runs *s = runs_in(m, r, d);
        uint32_t k, from = lo > r->lo[d] ? lo : r->lo[d], to = hi < r->hi[d] ? hi : r->hi[d], end;

        k = seek_run(m, s, from);
        if (k == s->n || m->runs[s->at + k].lo > to)
            return false;
        r->lo[d] = (uint16_t)(m->runs[s->at + k].lo > from ? m->runs[s->at + k].lo : from);
        end = seek_run(m, s, to);
        if (end == s->n || m->runs[s->at + end].lo > to)
            end--;
        r->hi[d] = (uint16_t)(m->runs[s->at + end].hi < to ? m->runs[s->at + end].hi : to);
        if (end == k)
            r->multi &= (uint16_t) ~(1u << d);
        else
            return true;
    }
    if (r->lo[d] > hi || r->hi[d] < lo)
        return false;
    if (r->lo[d] <= lo && r->hi[d] >= hi) { /* all of the branch: no matter what is there */
        r->lo[d] = 0;
        r->hi[d] = UINT16_MAX;
    } else {
        r->lo[d] = (uint16_t)(r->lo[d] > lo ? r->lo[d] : lo);
        r->hi[d] = (uint16_t)(r->hi[d] < hi ? r->hi[d] : hi);
    }
    return true;
}

static bool decides_all(const struct forest_maker *m, const struct ref *r)
{
    if (r->multi || r->verify || !m->ends[r->rule])
        return false;
    for (unsigned d = 0; d < N_DIMS; d++)
        if (cares(r, d))
            return false;
    return true;
}

static struct forest_slot make_node(struct forest_maker *m, const struct ref *refs, uint32_t n,
                                    const struct box *box, unsigned depth);

/* A branch that has been made, by what is in it. */
struct branch {
    const struct ref *refs;
    uint32_t n, slot;
};

/* Puts what of a ref lies in branches from..to there. */
static void deal_one(struct forest_maker *m, const struct ref *ref, const struct cut *c,
                     const struct box *box, uint32_t from, uint32_t to, struct ref *out,
                     uint32_t *at)
{
    for (uint32_t b = from; b <= to; b++) {
        uint32_t lo = b ? c->base + (b << c->shift) : box->lo[c->dim];
        uint32_t hi = b < c->last ? c->base + ((b + 1) << c->shift) - 1 : box->hi[c->dim];
        struct ref r = *ref;

        if (clip(m, &r, c->dim, lo, hi))
            out[at[b]++] = r;
    }
    m->work += to - from + 1;
}

/* Deals refs out to branches: starts[b] to starts[b + 1] are those of branch b. */
static struct ref *deal_out(struct forest_maker *m, const struct ref *refs, uint32_t n,
                            const struct cut *c, const struct box *box, uint64_t sum,
                            uint32_t *starts)
{
    struct ref *out = malloc((sum + 1) * sizeof *out);
    uint32_t *at = malloc((c->last + 1) * sizeof *at);
    uint32_t sofar = 0;

    if (!out || !at) {
        free(out);
        free(at);
        return NULL;
    }
    for (uint32_t b = 0; b <= c->last; b++) {
        starts[b] = at[b] = sofar;
        sofar += m->counts[b];
    }
    starts[c->last + 1] = sofar;
    for (uint32_t i = 0; i < n; i++) {
        struct spread spread = spread_of(m, &refs[i], c);
        uint32_t from, to;

        if (!spread.set)
            deal_one(m, &refs[i], c, box, branch_of(c, refs[i].lo[c->dim]),
                     branch_of(c, refs[i].hi[c->dim]), out, at);
        else
            while (next_branches(m, &spread, &from, &to))
                deal_one(m, &refs[i], c, box, from, to, out, at);
    }
    free(at);
    return out;
}

static void make_branches(struct forest_maker *m, const struct ref *refs, const uint32_t *starts,
                          const struct cut *c, const struct box *box, uint32_t first,
                          unsigned depth)
{
    uint32_t size = 8;
    struct branch *seen;

    while (size < (c->last + 1) * 2)
        size *= 2;
    seen = calloc(size, sizeof *seen);
    if (!seen) {
        m->failed = true;
        return;
    }
    for (uint32_t b = 0; b <= c->last && !m->failed; b++) {
        const struct ref *r = refs + starts[b];
        uint32_t n = starts[b + 1] - starts[b], at;
        struct box inner = *box;

        for (uint32_t i = 0; i < n; i++)
            if (decides_all(m, &r[i]))
                n = i + 1;
        at = (uint32_t)XXH3_64bits(r, n * sizeof *r) & (size - 1);
        while (seen[at].refs && (seen[at].n != n || memcmp(seen[at].refs, r, n * sizeof *r)))
            at = (at + 1) & (size - 1);
        m->work += n / 4 + 1;
        if (!seen[at].refs) {
            struct forest_slot made;

            seen[at] = (struct branch){r, n, first + b};
            if (b)
                inner.lo[c->dim] = (uint16_t)(c->base + (b << c->shift));
            if (b < c->last)
                inner.hi[c->dim] = (uint16_t)(c->base + ((b + 1) << c->shift) - 1);
            made = make_node(m, r, n, &inner, depth + 1);
            if (forest_is_leaf(&made))
                made.at = first + b;
            m->forest->slots[first + b] = made;
        } else {
            m->forest->slots[first + b] = m->forest->slots[seen[at].slot];
        }
    }
    free(seen);
}

static struct forest_slot make_node(struct forest_maker *m, const struct ref *refs, uint32_t n,
                                    const struct box *box, unsigned depth)
{
    struct forest_slot out = {.first = n ? refs[0].rule : UINT32_MAX};
    double cost = 0.8 * n;
    struct cut c = {.dim = N_DIMS};
    uint32_t *starts;
    struct ref *parts;
    uint64_t sum;

    if (n > LEAF_RULES && depth < MAX_DEPTH)
        for (unsigned d = 0; d < N_DIMS; d++)
            try_dim(m, refs, n, box, d, &c, &cost);
    if (c.dim == N_DIMS) {
        m->deepest = depth > m->deepest ? depth : m->deepest;
        return make_leaf(m, refs, n);
    }
    out.at = add_slots(m, c.last + 1);
    if (m->failed)
        return out;
    out.dim = (uint8_t)(c.dim * FOREST_DIM);
    out.shift = (uint8_t)c.shift;
    out.base = (uint16_t)c.base;
    out.last = (uint16_t)c.last;
    sum = count(m, refs, n, &c);
    starts = malloc((c.last + 2) * sizeof *starts);
    parts = starts ? deal_out(m, refs, n, &c, box, sum, starts) : NULL;
    if (parts && !over(m, 0, 0, 0))
        make_branches(m, parts, starts, &c, box, out.at, depth);
    else
        m->failed = true;
    free(parts);
    free(starts);
    return out;
}

/* --- A list
 * ----------------------------------------------------------------------------------------- */

static void reach(const struct forest_maker *m, struct ref *r, unsigned d, uint32_t set)
{
    const struct set_runs *s;

    r->lo[d] = 0;
    r->hi[d] = UINT16_MAX;
    if (set == MOAT_SET_ANY)
        return;
    s = &m->sets[set];
    if (!s->n) { /* nobody: a box without an inside */
        r->lo[d] = UINT16_MAX;
        r->hi[d] = 0;
        return;
    }
    r->lo[d] = m->runs[s->at].lo;
    r->hi[d] = m->runs[s->at + s->n - 1].hi;
    if (s->n > 1)
        r->multi |= (uint16_t)(1u << d);
    if (s->coarse)
        r->verify = 1;
}

/* False: it matches nothing. */
static bool make_ref(const struct forest_maker *m, uint32_t rule, struct ref *r)
{
    const struct moat_rule *rule_ = &m->rules[rule];

    *r = (struct ref){.rule = rule};
    reach(m, r, DIM_PEER, rule_->peer_set);
    reach(m, r, DIM_LOCAL, rule_->local_set);
    r->lo[DIM_DPORT] = m->rank[rule_->dport_lo];
    r->hi[DIM_DPORT] = rule_->dport_hi == UINT16_MAX ? UINT16_MAX : m->rank[rule_->dport_hi];
    r->lo[DIM_SPORT] = rule_->sport_lo;
    r->hi[DIM_SPORT] = rule_->sport_hi;
    if (!m->exact && rule_->proto != MOAT_PROTO_ANY)
        r->verify = 1;
    return r->lo[DIM_PEER] <= r->hi[DIM_PEER] && r->lo[DIM_LOCAL] <= r->hi[DIM_LOCAL];
}

static bool narrow(const struct forest_maker *m, uint32_t set)
{
    return set != MOAT_SET_ANY && m->sets[set].narrow;
}

/* Which tree a rule goes to, by narrow | wide peer, narrow | wide local side.  Fewer trees are
 * walked sooner, but hold more copies; a plan may cost so much and is given up if it does not
 * suffice. */
struct plan {
    uint8_t tree[4];       /* both narrow, peer narrow, local narrow, none */
    uint32_t work, memory; /* a rule */
    uint32_t leaf_max;
};

static const struct plan plans[] = {
    {{0, 0, 0, 0}, 150, 1024, LARGE_LEAF},
    {{0, 0, 2, 2}, 100, 600, LARGE_LEAF},
    {{0, 1, 0, 1}, 100, 600, LARGE_LEAF},
    {{0, 1, 2, 3}, WORK_PER_RULE, UINT32_MAX, FOREST_LEAF_MAX},
};

#define N_PLANS (sizeof plans / sizeof *plans)

static void add_tree(struct forest_trees *out, const struct forest_slot *root)
{
    uint32_t at = out->n_trees++;

    while (at && out->roots[at - 1].first > root->first) {
        out->roots[at] = out->roots[at - 1];
        at--;
    }
    out->roots[at] = *root;
}

static void follow_plan(struct forest_maker *m, const struct plan *p, const uint32_t *rules,
                        uint32_t n, struct ref *refs, struct forest_trees *out)
{
    static const struct box all = {.hi = {UINT16_MAX, UINT16_MAX, UINT16_MAX, UINT16_MAX}};

    out->n_trees = m->deepest = 0;
    for (unsigned tree = 0; tree < FOREST_TREES && !m->failed; tree++) {
        struct forest_slot root;
        uint32_t k = 0;

        for (uint32_t i = 0; i < n; i++) {
            const struct moat_rule *r = &m->rules[rules[i]];
            unsigned is = (narrow(m, r->peer_set) ? 0 : 2) | (narrow(m, r->local_set) ? 0 : 1);

            if (p->tree[is] == tree)
                k += make_ref(m, rules[i], &refs[k]);
        }
        if (!k)
            continue;
        root = make_node(m, refs, k, &all, 0);
        if (forest_is_leaf(&root)) {
            root.at = add_slots(m, 1);
            if (!m->failed)
                m->forest->slots[root.at] = root;
        }
        add_tree(out, &root);
    }
    out->depth = m->deepest;
}

void forest_plant(struct forest_maker *m, struct forest *f, const uint32_t *rules, uint32_t n,
                  bool exact, struct forest_trees *out)
{
    uint32_t n_slots = f->n_slots, n_leaves = f->n_leaves;
    struct ref *refs = malloc((n + 1) * sizeof *refs);
    uint64_t work_max = m->work_max;
    size_t memory_max = m->memory_max;

    m->exact = exact;
    m->forest = f;
    m->failed = true;
    for (unsigned i = 0; i < N_PLANS && m->failed && refs; i++) {
        uint64_t work = m->work + (uint64_t)n * plans[i].work + SPARE_WORK;
        size_t memory = (size_t)(n_slots + n_leaves) * 16 + (size_t)n * plans[i].memory + 65536;

        m->work_max = work < work_max ? work : work_max;
        m->memory_max = memory < memory_max ? memory : memory_max;
        m->leaf_max = plans[i].leaf_max;
        m->failed = false;
        f->n_slots = n_slots;
        f->n_leaves = n_leaves;
        follow_plan(m, &plans[i], rules, n, refs, out);
    }
    m->work_max = work_max;
    m->memory_max = memory_max;
    free(refs);
    if (m->failed) {
        out->n_trees = 0;
        f->n_slots = n_slots;
        f->n_leaves = n_leaves;
    }
}
