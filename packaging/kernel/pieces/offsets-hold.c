static DEFINE_MUTEX(offset_lock);

static void timens_set_vvar_page(struct task_struct *task, struct time_namespace *ns)
{
	if (ns == &init_time_ns)
		return;
	mutex_lock(&offset_lock);
	ns->frozen_offsets = true;
	mutex_unlock(&offset_lock);
}
