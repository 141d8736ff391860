
/* A page fault is two turns of a program and the kernel, many times what a page costs. */
#define AROUND (64UL << 10)
#define BEHIND (32UL << 10)
#define ROOM (2UL << 20)

/* What nobody has asked for mustn't have anybody killed, who is near his limit. */
static bool room_behind(void)
{
	struct mem_cgroup *group;

	rcu_read_lock();
	for (group = mem_cgroup_from_task(current); group; group = parent_mem_cgroup(group)) {
		struct page_counter *memory = &group->memory;

		if (page_counter_read(memory) + (ROOM >> PAGE_SHIFT) >
		    min(READ_ONCE(memory->max), READ_ONCE(memory->high)))
			break;
	}
	rcu_read_unlock();
	return group == NULL;
}

static bool may_fill_behind(struct vm_area_struct *vma)
{
	return vma_is_anonymous(vma) && !userfaultfd_armed(vma) && !(vma->vm_flags & VM_RAND_READ) && room_behind();
}

/* A program that writes to fresh memory soon writes to what comes after it. */
static void fill_behind(struct vm_area_struct *vma, unsigned long address)
{
	unsigned long end = min((address | (BEHIND - 1)) + 1, vma->vm_end);

	for (address = (address & PAGE_MASK) + PAGE_SIZE; address < end; address += PAGE_SIZE) {
		pte_t *pte = pte_offset_kernel(pmd_off(vma->vm_mm, address), address);

		if (!pte_none(*pte) || handle_mm_fault(vma, address, FAULT_FLAG_WRITE, NULL) & VM_FAULT_ERROR)
			break;
	}
}

/*
 * Note this is constrained to return 0, -EFAULT, -EACCES, -ENOMEM by
 * segv().
 */
